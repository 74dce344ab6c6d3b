"""What the devices of a compiled program send each other: every collective by kind, count and bytes."""

import dataclasses
import math
import re
from collections import defaultdict

from resonance_jax.parallel import hlo

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


_NETWORK = re.compile(r'_xla_megascale_target="\{([\d,]*)\}.*?_xla_megascale_transfer_type="(\w+)"')
"""A transfer between slices, which the hosts carry: the slices, and the collective that it is part of."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size.

    Attributes:
        kind: one of KINDS.
        over: how many devices a group has (2: each sends to one other), or slices where `across` is true.
        across: whether a group spans slices; None where the program's text does not list the groups.
        count: how often such a collective runs.
        bytes: what a device receives by all of them together; of a reduce-scatter what it puts in, and where
            `across` is true what it sends.
    """

    kind: str
    over: int
    across: bool | None
    count: int
    bytes: int


def collectives(program: hlo.Program, per_slice: int = 0) -> list[Collective]:
    """The collectives of one run of the program, those with the most bytes first.

    Args:
        program: as compiled, for one of its devices.
        per_slice: devices in a slice, whose numbers follow each other; 0 where there is one slice.
    """
    times, _ = hlo.runs(program)
    found: dict[tuple[str, int, bool | None], list[int]] = defaultdict(lambda: [0, 0])
    for name, count in times.items():
        for one in program.computations.get(name, ()):
            kind = one.opcode.removesuffix("-start")
            if kind == "send" and (network := _NETWORK.search(one.text)):
                total = found[network[2].lower().replace("_", "-"), len(network[1].split(",")), True]
                total[0] += count
                total[1] += count * max(hlo.BYTES[dtype] * n for dtype, n in hlo.shapes(one.gives))
            if kind not in KINDS:
                continue
            groups = groups_of(one.text)
            over = 2 if kind == "collective-permute" else _group_size(one.text, groups)
            total = found[kind, over, _across(groups, per_slice)]
            total[0] += count
            total[1] += count * _given(one, kind, over)
    rows = [Collective(*key, *total) for key, total in found.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _given(one: hlo.Instruction, kind: str, over: int) -> int:
    """Bytes of one collective on a device. What a -start gives begins with its operand."""
    arrays = [hlo.BYTES[dtype] * count for dtype, count in hlo.shapes(one.gives)]
    if one.opcode.endswith("-start") and kind in ("collective-permute", "all-gather"):
        operands = [n for n in arrays if n > 4]  # beside flags of 4 bytes
        arrays = operands[len(operands) // 2 :]
    return sum(arrays) * (over if kind == "reduce-scatter" else 1)


def groups_of(text: str) -> list[list[int]] | None:
    """The groups of devices of a collective; None where its text does not tell them."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        return _lists(pairs[1])
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return _lists(listed[1])
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape = [int(n) for n in tiled[3].split(",")]
        order = [int(n) for n in tiled[4].split(",")] if tiled[4] else list(range(len(shape)))
        return _cut(shape, order, int(tiled[2]))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", text):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        over = re.findall(r"'(\w+)'", mesh[3])
        if ":" in mesh[3] or mesh[2].strip():
            return None  # part of an axis, or devices in another order
        names = list(axes)
        order = [names.index(n) for n in names if n not in over] + [names.index(n) for n in over]
        return _cut([int(axes[n]) for n in names], order, math.prod(int(axes[n]) for n in over))
    return None


def _lists(text: str) -> list[list[int]]:
    return [[int(n) for n in part.split(",") if n] for part in re.findall(r"\{([\d,]*)\}", text)]


def _cut(shape: list[int], order: list[int], size: int) -> list[list[int]]:
    """Devices 0, 1, … laid out in a shape, its axes put in another order, cut in groups of a size."""
    import numpy as np

    devices = np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1, size)
    return devices.tolist()


def _group_size(text: str, groups: list[list[int]] | None) -> int:
    """How many devices a group has; 0 where that is not known."""
    return 0 if not groups else max(len(group) for group in groups)


def _across(groups: list[list[int]] | None, per_slice: int) -> bool | None:
    """Whether some group has devices of several slices."""
    if not per_slice:
        return False
    return None if groups is None else any(len({d // per_slice for d in group}) > 1 for group in groups)
