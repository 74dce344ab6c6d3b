"""Attention in O(T) memory on any backend: a scan over the pairs of a query block and a key block that meet.

The softmax of a row is merged from its blocks as they come (the online softmax of Milakov & Gimelshein 2018;
FlashAttention, Dao et al. 2022): the state is the output so far and its log-sum-exp. Merging is commutative,
so the pairs are static lists of two kinds, those that need a mask (the diagonal, the window's edge, the last
keys, everything when there are segments) and the interior ones that don't, each run by one `lax.scan`. The
gradient recomputes the weights from the saved log-sum-exp (Dao et al. 2022, algorithm 4).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

SAVED = ("attention_out", "attention_lse")
"""Names of what the gradient needs beside q, k, v, for jax.checkpoint_policies.save_only_these_names."""


class Plan(NamedTuple):
    """What is computed, all of it static: T queries over S keys, in blocks of `rows` and of `columns`."""

    T: int
    S: int
    rows: int
    columns: int
    causal: bool
    window: int | None
    offset: int
    scale: float
    segments: bool


def block_pairs(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Array | None = None,
    kv_segment_ids: Array | None = None,
    offset: int | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> Array:
    """Softmax attention [B, T, N, H] -> [B, T, N, H]; arguments as `attention`'s, with a static offset.

    Saves q, k, v, the output and its log-sum-exp for the gradient; nothing is [T, S]. The last two are named
    (SAVED), so that a policy of `jax.checkpoint` can keep them and spare a second forward pass.
    Differentiable once, in reverse mode.

    Args:
        block: positions in a block, about (lengths are padded to equal blocks of a multiple of 16); default
            `default_block`.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    block = block or default_block(B * N, jax.default_backend())
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
    )
    q = _pad(q.reshape(B, T, K, N // K, H), plan.rows)
    k, v = _pad(k, plan.columns), _pad(v, plan.columns)
    if plan.segments:
        kv_segment_ids = segment_ids if kv_segment_ids is None else kv_segment_ids
        segment_ids, kv_segment_ids = _pad(segment_ids, plan.rows), _pad(kv_segment_ids, plan.columns)
    out = _attend(q, k, v, segment_ids, kv_segment_ids, plan)
    return out[:, :T].reshape(B, T, N, H)


def default_block(heads: int, platform: str) -> int:
    """Positions in a block for `heads` = B * N: on CPU the tiles of scores should stay in the cache."""
    tile = 1 << 20 if platform == "cpu" else 1 << 24
    return next((block for block in (512, 256) if heads * block * block <= tile), 128)


def pairs(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """i32[n, 2] (query block, key block): the pairs that need a mask, and those that see everything."""
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
    return tuple(np.argwhere(kind).astype(np.int32) for kind in (meet & ~whole, meet & whole))


def _even(length, block):
    """A block size, a multiple of 16, that cuts length into blocks of about `block` with little padding."""
    return -(-length // (16 * -(-length // block))) * 16


def _pad(x, block):
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, segment_ids, kv_segment_ids, plan):
    return _forward(q, k, v, segment_ids, kv_segment_ids, plan)[0]


def _forward(q, k, v, segment_ids, kv_segment_ids, plan):
    B, T, K, G, _ = q.shape
    wide = np.promote_types(np.float32, q.dtype)
    lowest = jnp.finfo(wide).min / 4

    def merge(masked, state, pair):
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
    out, lse = (checkpoint_name(x, name) for x, name in zip((out.astype(q.dtype), lse), SAVED, strict=True))
    return out, (q, k, v, segment_ids, kv_segment_ids, out, lse)


def _backward(plan, saved, d_out):
    q, k, v, segment_ids, kv_segment_ids, out, lse = saved
    B, T, K, G, _ = q.shape
    wide = lse.dtype
    lowest = jnp.finfo(wide).min / 4
    delta = jnp.einsum("btkgh,btkgh->bktg", out.astype(wide), d_out.astype(wide)).reshape(B, K, T * G)

    def accumulate(masked, gradients, pair):
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

    gradients = _over_pairs(accumulate, tuple(jnp.zeros(x.shape, wide) for x in (q, k, v)), plan)
    dq, dk, dv = (d.astype(x.dtype) for d, x in zip(gradients, (q, k, v), strict=True))
    return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)


def _over_pairs(step, state, plan):
    for masked, listed in zip((True, False), pairs(plan), strict=True):
        if len(listed):
            state, _ = lax.scan(partial(step, masked), state, (listed[:, 0], listed[:, 1]))
    return state


def _visible(plan, i, j, G, segment_ids, kv_segment_ids, keys_first=False):
    """Which keys of block j each row (query, group) of block i sees: bool[1 or B, 1, rows * G, columns].

    keys_first: bool[1 or B, 1, columns, rows * G].
    """
    query = plan.offset + i * plan.rows + jnp.arange(plan.rows * G, dtype=jnp.int32)[None] // G
    key = j * plan.columns + jnp.arange(plan.columns, dtype=jnp.int32)[None]
    mine = theirs = None
    if plan.segments:
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
    if plan.segments:
        seen = seen & (of_rows(mine) == of_keys(theirs))
    return seen


def _once(vectors):
    """Keep XLA from fusing the making of a tile's vectors into its elements, where it would be repeated."""
    return lax.optimization_barrier(vectors)


def _dot(spec, x, y, dtype):
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)


def _slice(x, block, size, axis):
    return lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _heads_first(x, block, size):
    """One block of [B, T, K, (G,) H] as [B, K, size * G, H]."""
    x = _slice(x, block, size, axis=1).swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _put(x, rows, block, size):
    """x with one of its blocks replaced by rows [B, K, size * G, H]."""
    rows = rows.reshape(x.shape[0], x.shape[2], size, *x.shape[3:]).swapaxes(1, 2)
    return lax.dynamic_update_slice_in_dim(x, rows, block * size, axis=1)


def _add(x, rows, block, size):
    return _put(x, rows + _heads_first(x, block, size), block, size)
