"""Mesh, rows at a time and recomputation, searched by the plan: the most preferred setting that fits."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from resonance_jax.model import lora as adapters
from resonance_jax.model.config import DecoderConfig
from resonance_jax.parallel import memory
from resonance_jax.parallel.mesh import AXES
from resonance_jax.train.plan import Plan, plan, state

REMAT = ("none", "dots", "attention", "full")
"""What a gradient may recompute, from the least work to the most."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to compute a step.

    Attributes:
        mesh: its sizes by axis.
        micro: rows of a micro-batch, over all devices.
        remat: what the gradient recomputes.
        plan: what the plan says of it.
    """

    mesh: dict[str, int]
    micro: int
    remat: str
    plan: Plan

    @property
    def axes(self) -> str:
        """The mesh for people: "fsdp 8 x sequence 2"."""
        return " x ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1) or "one device"


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        chosen: the first setting that fits; None where none does.
        refused: the settings before it, and why each does not fit.
    """

    chosen: Setting | None
    refused: list[tuple[Setting, str]]

    def rows(self) -> list[dict[str, str]]:
        """For report.print_table: the chosen setting, then those refused: on its own mesh the leanest with
        each recomputation, on every mesh before it the leanest of all."""
        leanest: dict[tuple[str, str], tuple[Setting, str]] = {}
        for setting, why in self.refused:
            own = self.chosen is not None and setting.mesh == self.chosen.mesh
            key = (setting.axes, setting.remat if own else "")
            if key not in leanest or setting.plan.total < leanest[key][0].plan.total:
                leanest[key] = setting, why
        found = list(leanest.values())
        if self.chosen is not None:
            found = [(self.chosen, "fits"), *found]
        return [
            {
                "mesh": setting.axes,
                "rows at a time": f"{setting.micro:,}",
                "remat": setting.remat,
                "a chip holds": memory.readable(setting.plan.total),
                "verdict": why,
            }
            for setting, why in found
        ]


def meshes(devices: int, rows: int, length: int, config: DecoderConfig) -> list[dict[str, int]]:
    """The meshes over all devices whose axes divide what they cut, the simplest first.

    fsdp alone comes first. A mesh that cuts heads or time waits within every layer for what the devices send
    each other, and one with replicas holds more. So meshes are sorted by the size of tensor, then of
    sequence, then of data.

    Args:
        devices: how many there are.
        rows, length: of a batch [B, T].
        config: the decoder.
    """
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for data, tensor, sequence in itertools.product(sizes, repeat=3):
        fsdp, rest = divmod(devices, data * tensor * sequence)
        whole = length % sequence == 0 and config.n_kv_heads % tensor == 0 and config.d_ff % tensor == 0
        if fsdp and not rest and whole and rows % (data * fsdp) == 0:
            found.append(dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True)))
    return sorted(found, key=lambda mesh: (mesh["tensor"], mesh["sequence"], mesh["data"]))


def settings(
    config: DecoderConfig,
    devices: int,
    rows: int,
    length: int,
    lora: adapters.LoraConfig | None = None,
    chip: tuple[str, int | None] = ("cpu", None),
) -> Iterator[Setting]:
    """Every way to compute a step, the most preferred first.

    Preferred are the simplest mesh, then the least recomputation, then the most rows per micro-batch (for
    each of which the weights are gathered again).

    Args:
        config: the decoder; its remat does not matter.
        devices: how many there are.
        rows, length: of a batch [B, T].
        lora: adapters, if they are what is trained.
        chip: as plan's.
    """
    for mesh in meshes(devices, rows, length, config):
        lasting, shards = state(config, mesh, lora), mesh["data"] * mesh["fsdp"]
        micros = [n for n in range(rows, 0, -shards) if rows % n == 0]
        for remat in REMAT:
            own = config.replace(remat=remat)
            for micro in micros:
                made = plan(own, mesh, rows, length, micro, lora, chip, lasting)
                yield Setting(mesh, micro, remat, made)


def search(
    settings: Iterable[Setting], compiled: Callable[[Setting], str | None] | None = None, tries: int = 3
) -> Search:
    """The first setting that fits by its plan and, where that is asked too, by the compiler.

    Args:
        settings: in order of preference.
        compiled: compiled(setting) says why the compiler refuses it, None where it fits. It is asked of
            settings that fit by the plan.
        tries: how many refusals by the compiler end the search.

    Raises:
        ValueError: the chip's memory is not known.
    """
    refused: list[tuple[Setting, str]] = []
    for setting in settings:
        made = setting.plan
        if made.capacity is None:
            raise ValueError("how much memory this chip has is not known; give --chip by name.")
        if not made.fits:
            why = f"needs {memory.readable(made.total)} of {memory.readable(made.capacity)}"
        elif compiled is None or (why := compiled(setting)) is None:
            return Search(setting, refused)
        else:
            why, tries = f"the compiler: {why}", tries - 1
        refused.append((setting, why))
        if tries < 1:
            break
    return Search(None, refused)
