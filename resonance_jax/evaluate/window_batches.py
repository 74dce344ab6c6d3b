"""Which windows go through a decoder together, so that little is computed beside what is scored.

Rows are cut over the devices. Where there are fewer rows than devices, time is cut over the rest: four
devices do one long window together, and none of them repeats it.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Integer

MOST_PADDING = 1 / 32
"""How much padding a batch may have, relative to its windows' tokens, before a smaller batch is preferred."""


@dataclasses.dataclass(frozen=True)
class Cuts:
    """How many devices cut a batch in which way.

    Attributes:
        rows: those that cut rows alone (the mesh axis `fsdp`).
        either: those that cut rows, or time where rows are too few (`data`).
        time: those that always cut time (`sequence`).
        movable: whether `either` can cut time.
    """

    rows: int = 1
    either: int = 1
    time: int = 1
    movable: bool = False

    @property
    def shards(self) -> int:
        """Parts that rows are cut into: a batch of full rows is a multiple of it."""
        return self.rows * self.either


@dataclasses.dataclass(frozen=True)
class WindowBatch:
    """Windows that are scored at once.

    Attributes:
        windows: their numbers.
        rows: of the batch; the last window is repeated to fill it.
        width: positions of a row; windows are padded at the end, where causal attention cannot see it.
        time: into how many parts the devices of Cuts.either cut time.
    """

    windows: tuple[int, ...]
    rows: int
    width: int
    time: int = 1

    @property
    def computed(self) -> int:
        """Tokens that go through the decoder, padding included."""
        return self.rows * self.width


def padded_width(size: int, length: int) -> int:
    """Positions that a window of `size` ids is padded to: one of four widths per octave, at most `length`.

    So few shapes are compiled, and less than a quarter is added (to windows of more than 64 ids).
    """
    step = max(16, 1 << max(0, (size - 1).bit_length() - 3))
    return min(length, -(-size // step) * step)


def batches(
    sizes: Sequence[int] | Integer[np.ndarray, "W"], length: int, cuts: Cuts, tokens: int
) -> list[WindowBatch]:
    """Every window in one batch, the longest first; of a few row counts, so that few shapes are compiled.

    Args:
        sizes: ids of each window.
        length: the most that they can have.
        cuts: how devices share a batch.
        tokens: about how many each shard of rows takes at once; a longer window goes alone.
    """
    widths = np.asarray([padded_width(int(size), length) for size in sizes])
    order = np.argsort(-widths, kind="stable")
    found = []
    while len(order):
        options = [
            (_padding(widths[order[:rows]], rows, width), rows, width, time)
            for rows, width, time in _shapes(len(order), int(widths[order[0]]), cuts, tokens)
        ]
        little = (option for option in options if option[0] <= MOST_PADDING)
        _, rows, width, time = next(little, min(options))
        found.append(WindowBatch(tuple(order[:rows].tolist()), rows, width, time))
        order = order[rows:]
    return found


def _shapes(left: int, width: int, cuts: Cuts, tokens: int) -> Iterator[tuple[int, int, int]]:
    """(rows, width, time) of the batches that the next windows could go into, the largest first."""
    shards = cuts.shards
    most = max(1, tokens // width) * shards
    if left >= most:
        yield most, _divisible(width, cuts.time), 1
    for power in range(max(0, -(-left // shards) - 1).bit_length(), -1, -1):
        if shards << power <= most:
            yield shards << power, _divisible(width, cuts.time), 1
    for time in range(2, cuts.either + 1 if cuts.movable else 2):
        if cuts.either % time == 0:
            yield shards // time, _divisible(width, cuts.time * time), time


def _divisible(width: int, time: int) -> int:
    """The width that devices can cut into two halves each (model.sequence)."""
    return width if time == 1 else -(-width // (2 * time)) * 2 * time


def _padding(widths: Integer[np.ndarray, "some"], rows: int, width: int) -> float:
    """How many positions of a batch are padding or repeated, relative to the tokens of its windows."""
    return rows * width / int(widths.sum()) - 1
