"""Attention in O(T) memory on any device: a scan over the pairs of a query block and a key block that meet.

The softmax of a row is merged from its blocks as they come (the online softmax of Milakov & Gimelshein 2018;
FlashAttention, Dao et al. 2022): the state is the output so far and its log-sum-exp. Merging is commutative,
so the pairs are two static lists, each run by one `lax.scan`: the pairs that need a mask (on the diagonal, on
the window's edge, with the last keys, and all of them when there are segments) and the others. The gradient
recomputes the weights from the saved log-sum-exp (Dao et al. 2022, algorithm 4).

On a CPU many heads are worked on one after another (a key head with the queries that read it), so that their
tiles stay in its cache: smaller blocks of all of them at once would mean smaller products, which are slower.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from resonance_jax.model.lowering import target
from resonance_jax.parallel.mesh import automatic_axes

SAVED = ("attention_out", "attention_lse")
"""Names of what the gradient needs beside q, k, v, for jax.checkpoint_policies.save_only_these_names."""

_State = TypeVar("_State")
_Pair = tuple[Int[Array, ""], Int[Array, ""]]
_Gradients = tuple[Float[Array, "B T K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]


class Plan(NamedTuple):
    """What one call computes, all of it static: T queries over S keys, in blocks of `rows` by `columns`.

    by_head: one row and key head after another.
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


def block_pairs(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
    kv_segment_ids: Int[Array | np.ndarray, "B S"] | None = None,
    offset: int | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention in blocks. Nothing of size [T, S] is made. Differentiable once, in reverse mode.

    The gradient needs q, k, v, the output and its log-sum-exp. The last two are named (SAVED), so that a
    policy of `jax.checkpoint` can keep them and spare a second forward pass.

    Args:
        q, k, v, causal, window, segment_ids, kv_segment_ids, scale: as for `attention`.
        offset: as for `attention`, but an int.
        block: about how many positions make a block (lengths are padded to equal blocks of a multiple of 16);
            default `default_block`.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    platform = target().platform
    # Rows that a mesh cuts over devices must not follow one another.
    by_head = platform == "cpu" and not automatic_axes(q) and many_heads(B * N, max(T, S))
    block = block or default_block(N // K if by_head else B * N, platform)
    plan = Plan(
        T=T,
        S=S,
        rows=_even(T, block),
        columns=_even(S, block),
        causal=causal,
        window=window,
        offset=S - T if offset is None else offset,
        scale=H**-0.5 if scale is None else float(scale),
        segments=segment_ids is not None,
        by_head=by_head,
    )
    q = _pad(q.reshape(B, T, K, N // K, H), plan.rows)
    k, v = _pad(k, plan.columns), _pad(v, plan.columns)
    if segment_ids is not None:
        kv_segment_ids = segment_ids if kv_segment_ids is None else kv_segment_ids
        segment_ids, kv_segment_ids = _pad(segment_ids, plan.rows), _pad(kv_segment_ids, plan.columns)
    out = _attend_blocks(q, k, v, segment_ids, kv_segment_ids, plan)
    return out[:, :T].reshape(B, T, N, H)


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


def _even(length: int, block: int) -> int:
    """A block size, a multiple of 16, that cuts length into blocks of about `block` with little padding."""
    return -(-length // (16 * -(-length // block))) * 16


def _pad(x: Shaped[Array | np.ndarray, "B T *rest"], block: int) -> Shaped[Array, "B padded *rest"]:
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2))


def _attend(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    plan: Plan,
) -> Float[Array, "B T K G H"]:
    """Attention over lengths that are whole blocks, with the G query heads of a key head side by side."""
    return _forward(q, k, v, segment_ids, kv_segment_ids, plan)[0]


_Saved = tuple[
    Float[Array, "B T K G H"],
    Float[Array, "B S K H"],
    Float[Array, "B S K H"],
    Int[Array, "B T"] | None,
    Int[Array, "B S"] | None,
    Float[Array, "B T K G H"],
    Float[Array, "B K T*G"],
]
"""The arguments of `_attend`, the output and its log-sum-exp."""


def _forward(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    plan: Plan,
) -> tuple[Float[Array, "B T K G H"], _Saved]:
    out, lse = _over_heads(_forward_of_heads, (q, k, v), (segment_ids, kv_segment_ids), (), plan)
    out, lse = checkpoint_name(out, SAVED[0]), checkpoint_name(lse, SAVED[1])
    return out, (q, k, v, segment_ids, kv_segment_ids, out, lse)


def _forward_of_heads(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    plan: Plan,
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B K T*G"]]:
    """The output and its log-sum-exp."""
    B, T, K, G, _ = q.shape
    wide = np.promote_types(np.float32, q.dtype)
    lowest = jnp.finfo(wide).min / 4

    def merge(
        masked: bool, state: tuple[Float[Array, "B T K G H"], Float[Array, "B K T*G"]], pair: _Pair
    ) -> tuple[tuple[Float[Array, "B T K G H"], Float[Array, "B K T*G"]], None]:
        out, lse = state
        i, j = pair
        queries = _heads_first(q, i, plan.rows)
        keys, values = _heads_first(k, j, plan.columns), _heads_first(v, j, plan.columns)
        scores = _dot("bkrh,bksh->bkrs", queries, keys, wide) * plan.scale
        if masked:
            seen = _visible(plan, i, j, G, segment_ids, kv_segment_ids)
            scores = jnp.where(seen, scores, lowest)
        # Not below lowest / 2: a row that sees none of these keys weighs them by exp(lowest / 2) = 0.
        top = jnp.maximum(scores.max(axis=-1), lowest / 2)
        weights = jnp.exp(scores - top[..., None])
        total = jnp.maximum(weights.sum(axis=-1), jnp.finfo(wide).tiny)
        before = _slice(lse, i, plan.rows * G, axis=2)
        after = jnp.logaddexp(before, top + jnp.log(total))
        new = _dot("bkrs,bksh->bkrh", weights.astype(v.dtype), values, wide) * jnp.exp(top - after)[..., None]
        new += _heads_first(out, i, plan.rows) * jnp.exp(before - after)[..., None]
        lse = lax.dynamic_update_slice_in_dim(lse, after, i * plan.rows * G, axis=2)
        return (_put(out, new, i, plan.rows), lse), None

    state = jnp.zeros(q.shape, wide), jnp.full((B, K, T * G), lowest, wide)
    out, lse = _over_pairs(merge, state, plan)
    return out.astype(q.dtype), lse


def _backward(
    plan: Plan, saved: _Saved, d_out: Float[Array, "B T K G H"]
) -> tuple[Float[Array, "B T K G H"], Float[Array, "B S K H"], Float[Array, "B S K H"], None, None]:
    q, k, v, segment_ids, kv_segment_ids, out, lse = saved
    whole, ids = (q, k, v, out, d_out), (segment_ids, kv_segment_ids)
    dq, dk, dv = _over_heads(_backward_of_heads, whole, ids, (lse,), plan)
    return dq, dk, dv, None, None


def _backward_of_heads(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    out: Float[Array, "B T K G H"],
    d_out: Float[Array, "B T K G H"],
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    lse: Float[Array, "B K _"],
    plan: Plan,
) -> _Gradients:
    """The gradients by q, k and v. out, lse: of the forward pass."""
    B, T, K, G, _ = q.shape
    wide = lse.dtype
    lowest = jnp.finfo(wide).min / 4
    delta = jnp.einsum("btkgh,btkgh->bktg", out.astype(wide), d_out.astype(wide)).reshape(B, K, T * G)

    def accumulate(masked: bool, gradients: _Gradients, pair: _Pair) -> tuple[_Gradients, None]:
        dq, dk, dv = gradients
        i, j = pair
        queries, d_outs = _heads_first(q, i, plan.rows), _heads_first(d_out, i, plan.rows)
        keys, values = _heads_first(k, j, plan.columns), _heads_first(v, j, plan.columns)
        norm, drift = _once((_slice(lse, i, plan.rows * G, axis=2), _slice(delta, i, plan.rows * G, axis=2)))
        # Tiles are [keys, rows]: no product has to contract the leading axis of its tile, slow on CPU.
        scores = _dot("bksh,bkrh->bksr", keys, queries, wide) * plan.scale
        if masked:
            seen = _visible(plan, i, j, G, segment_ids, kv_segment_ids, keys_first=True)
            scores = jnp.where(seen, scores, lowest)
        weights = jnp.exp(scores - norm[:, :, None])
        d_weights = _dot("bksh,bkrh->bksr", values, d_outs, wide)
        d_scores = weights * (d_weights - drift[:, :, None]) * plan.scale
        weights, d_scores = weights.astype(q.dtype), d_scores.astype(q.dtype)
        dqT = _dot("bkhs,bksr->bkhr", keys.swapaxes(2, 3), d_scores, wide)
        dq = _add(dq, dqT.swapaxes(2, 3), i, plan.rows)
        dk = _add(dk, _dot("bksr,bkrh->bksh", d_scores, queries, wide), j, plan.columns)
        dv = _add(dv, _dot("bksr,bkrh->bksh", weights, d_outs, wide), j, plan.columns)
        return (dq, dk, dv), None

    zeros = jnp.zeros(q.shape, wide), jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
    dq, dk, dv = _over_pairs(accumulate, zeros, plan)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_attend_blocks = jax.custom_vjp(_attend, nondiff_argnums=(5,))
_attend_blocks.defvjp(_forward, _backward)


def _over_heads(
    run: Callable[..., tuple[Array, ...]],
    whole: tuple[Float[Array, "B _ K ..."], ...],
    ids: tuple[Int[Array, "B _"] | None, ...],
    of_queries: tuple[Float[Array, "B K _"], ...],
    plan: Plan,
) -> tuple[Array, ...]:
    """run(*whole, *ids, *of_queries, plan), one row and key head after another where the plan says so."""
    if not plan.by_head:
        return run(*whole, *ids, *of_queries, plan)
    B, _, K = whole[0].shape[:3]

    def split(x: Float[Array, "B _ K ..."]) -> Float[Array, "heads 1 _ 1 ..."]:
        x = jnp.moveaxis(x, 2, 1)
        return x.reshape(B * K, 1, x.shape[2], 1, *x.shape[3:])

    def join(x: Float[Array, "heads 1 ..."]) -> Float[Array, "B ..."]:
        if x.ndim == 4:  # the log-sum-exp
            return x.reshape(B, K, -1)
        return jnp.moveaxis(x.reshape(B, K, x.shape[2], *x.shape[4:]), 1, 2)

    each = (
        *map(split, whole),
        *(None if x is None else jnp.repeat(x, K, axis=0)[:, None] for x in ids),
        *(x.reshape(B * K, 1, 1, -1) for x in of_queries),
    )
    return tuple(map(join, lax.map(lambda one: run(*one, plan), each)))


def _over_pairs(
    step: Callable[[bool, _State, _Pair], tuple[_State, None]], state: _State, plan: Plan
) -> _State:
    """The state after step(masked, state, pair) for every pair of blocks that meet."""
    for masked, listed in zip((True, False), pairs(plan), strict=True):
        if len(listed):
            each = cast(_Pair, (listed[:, 0], listed[:, 1]))  # scan hands them on one by one
            state, _ = lax.scan(partial(step, masked), state, each)
    return state


def _visible(
    plan: Plan,
    i: Int[Array, ""],
    j: Int[Array, ""],
    G: int,
    segment_ids: Int[Array, "B T"] | None,
    kv_segment_ids: Int[Array, "B S"] | None,
    keys_first: bool = False,
) -> Bool[Array, "rows 1 _ _"]:
    """Which keys of block j the queries of block i see: [1 or B, 1, plan.rows * G, plan.columns].

    Args:
        plan, segment_ids, kv_segment_ids: as for `_attend`.
        i, j: the block of queries and the block of keys.
        G: query heads of a key head.
        keys_first: give [1 or B, 1, plan.columns, plan.rows * G] instead.
    """
    query = plan.offset + i * plan.rows + jnp.arange(plan.rows * G, dtype=jnp.int32)[None] // G
    key = j * plan.columns + jnp.arange(plan.columns, dtype=jnp.int32)[None]
    mine = theirs = None
    if segment_ids is not None and kv_segment_ids is not None:
        mine = jnp.repeat(_slice(segment_ids, i, plan.rows, axis=1), G, axis=1)
        theirs = _slice(kv_segment_ids, j, plan.columns, axis=1)
    query, key, mine, theirs = _once((query, key, mine, theirs))
    of_rows = lambda x: x[:, None, None, :] if keys_first else x[:, None, :, None]
    of_keys = lambda x: x[:, None, :, None] if keys_first else x[:, None, None, :]
    query, key = of_rows(query), of_keys(key)
    seen = key < plan.S
    if plan.causal:
        seen = seen & (key <= query)
    if plan.window is not None:
        seen = seen & (key > query - plan.window)
    if mine is not None and theirs is not None:
        seen = seen & (of_rows(mine) == of_keys(theirs))
    return seen


def _once(vectors: _State) -> _State:
    """Make XLA compute a tile's vectors once: fused into the tile they would be computed for each element."""
    return lax.optimization_barrier(vectors)


def _dot(spec: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: np.dtype) -> Float[Array, "..."]:
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)


def _slice(x: Shaped[Array, "..."], block: Int[Array, ""], size: int, axis: int) -> Shaped[Array, "..."]:
    """Block number `block` of x along an axis."""
    return lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _heads_first(
    x: Float[Array, "B T K *group H"], block: Int[Array, ""], size: int
) -> Float[Array, "B K rows H"]:
    """One block of queries [B, T, K, G, H] or of keys [B, S, K, H] with heads first; rows = size * G."""
    x = _slice(x, block, size, axis=1).swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _put(
    x: Float[Array, "B T K *group H"], rows: Float[Array, "B K rows H"], block: Int[Array, ""], size: int
) -> Float[Array, "B T K *group H"]:
    """x with one of its blocks replaced by rows as `_heads_first` gives them."""
    rows = rows.reshape(x.shape[0], x.shape[2], size, *x.shape[3:]).swapaxes(1, 2)
    return lax.dynamic_update_slice_in_dim(x, rows, block * size, axis=1)


def _add(
    x: Float[Array, "B T K *group H"], rows: Float[Array, "B K rows H"], block: Int[Array, ""], size: int
) -> Float[Array, "B T K *group H"]:
    """x with rows, as `_heads_first` gives them, added to one of its blocks."""
    return _put(x, rows + _heads_first(x, block, size), block, size)
