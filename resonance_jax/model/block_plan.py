"""Which blocks of queries and keys meet, how large they are, and which of them need a mask: static."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

SMALLEST = 64
"""Positions of the smallest block that a block on the diagonal is cut into on a CPU, where a step of the scan
costs little. Forward and backward take 0.73 to 0.92 of the time of whole blocks, least at short lengths."""


class Plan(NamedTuple):
    """What one call computes, all of it static: T queries over S keys, in blocks of `rows` by `columns`.

    by_head: one row and key head after another. smallest: positions of the smallest block that one may be cut
    into where parts of it are hidden (`listed`).
    """

    T: int
    S: int
    rows: int
    columns: int
    causal: bool
    window: int | None
    offset: int
    scale: float
    segments: bool
    by_head: bool = False
    smallest: int = SMALLEST


def default_block(heads: int, platform: str) -> int:
    """Positions in a block. On a CPU the tiles of scores should stay in its cache.

    Args:
        heads: the tiles that are alive at a time, one per query head.
        platform: jax's name of it, such as "cpu".
    """
    tile = 1 << 20 if platform == "cpu" else 1 << 24
    return next((block for block in (512, 256) if heads * block * block <= tile), 128)


def many_heads(heads: int, length: int) -> bool:
    """Whether a CPU's cache does not hold the tiles of all heads together, in blocks as large as suit it.

    Up to 256 positions smaller blocks leave more out of what the mask hides than they cost.
    """
    return length > 256 and default_block(heads, "cpu") < 512


def pairs(plan: Plan) -> tuple[Int[np.ndarray, "masked 2"], Int[np.ndarray, "whole 2"]]:
    """The pairs (query block, key block) that need a mask, and those in which every query sees every key."""
    i, j = np.ogrid[: -(-plan.T // plan.rows), : -(-plan.S // plan.columns)]
    first_key, last_key = j * plan.columns, np.minimum(plan.S, (j + 1) * plan.columns) - 1
    first_query = plan.offset + i * plan.rows
    last_query = plan.offset + np.minimum(plan.T, (i + 1) * plan.rows) - 1
    meet = np.ones((i.size, j.size), bool)
    whole = meet & ((j + 1) * plan.columns <= plan.S) & (not plan.segments)
    if plan.causal:
        meet &= first_key <= last_query
        whole &= last_key <= first_query
    if plan.window is not None:
        meet &= last_key > first_query - plan.window
        whole &= first_key > last_query - plan.window
    return np.argwhere(meet & ~whole).astype(np.int32), np.argwhere(meet & whole).astype(np.int32)


def even(length: int, block: int) -> int:
    """A block size, a multiple of 16, that cuts length into blocks of about `block` with little padding."""
    return -(-length // (16 * -(-length // block))) * 16


def listed(plan: Plan) -> list[tuple[Plan, bool, Int[np.ndarray, "pairs 2"]]]:
    """Every pair that is computed: (the plan with the blocks' sizes, whether they need a mask, the pairs).

    Of a masked pair whose quarters are not all needed, above all on the diagonal, the others are computed as
    pairs of blocks of half the size, and so on down to `plan.smallest`.
    """
    masked, whole = pairs(plan)
    found = [(plan, False, whole), *_cut(plan, masked)]
    return [(sizes, mask, some) for sizes, mask, some in found if len(some)]


def _cut(
    plan: Plan, masked: Int[np.ndarray, "masked 2"]
) -> list[tuple[Plan, bool, Int[np.ndarray, "pairs 2"]]]:
    """The masked pairs of a plan, those of them in smaller blocks that have quarters to leave out."""
    if plan.rows % 32 or plan.columns % 32 or min(plan.rows, plan.columns) < 2 * plan.smallest:
        return [(plan, True, masked)]
    half = plan._replace(rows=plan.rows // 2, columns=plan.columns // 2)
    both = pairs(half)
    needed = Counter(map(tuple, np.concatenate(both) // 2))
    full = np.array([needed[tuple(pair)] == 4 for pair in masked], bool)
    cut = set(map(tuple, masked[~full]))
    inside = [some[[tuple(quarter) in cut for quarter in some // 2]] for some in both]
    return [(plan, True, masked[full]), (half, False, inside[1]), *_cut(half, inside[0])]
