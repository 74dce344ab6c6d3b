"""Attention of new tokens over a cache of keys and values, read where it lies.

The cache is never copied or cut out of its stack of layers: keys are read block by block, only those that
some query sees, and the softmax is merged block by block (the online softmax of Milakov & Gimelshein 2018).
A prefix that all rows share is held once, and read once for the queries of all of them.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from resonance_jax.model.lowering import target

QUERIES = 128
"""New tokens per row that attend at a time."""


class Prefix(NamedTuple):
    """Keys and values of the tokens that every row begins with.

    Attributes:
        keys, values: of the tokens, one row for all.
        length: how many tokens there are, at most P.
    """

    keys: Float[Array, "L 1 K P H"]
    values: Float[Array, "L 1 K P H"]
    length: Int[Array, ""]


def cached_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "L B K S H"],
    values: Float[Array, "L B K S H"],
    layer: Int[Array, ""],
    held: Int[Array, "B"],
    *,
    window: int | None,
    scale: float,
    prefix: Prefix | None = None,
) -> Float[Array, "B T N H"]:
    """Causal softmax attention over one layer of a cache.

    Statistics are in promote_types(float32, dtype). Scores are made for one block of keys and at most QUERIES
    tokens per row at a time. Not differentiable.

    Args:
        q: query t of row b stands at slot held[b] + t of its row and sees the keys up to it.
        keys, values: the cache, with those of the new tokens already written. Query head n reads key head
            n // (N // K).
        layer: which of the L.
        held: how many tokens of each row came before these.
        window: see only the last `window` keys; None for all.
        scale: factor on the scores.
        prefix: what stands before slot 0 of every row; all queries see it, as far as the window reaches.

    Returns:
        What each query attends to, in q's dtype.
    """
    B, T, N, H = q.shape
    K = keys.shape[2]
    count = min(T, QUERIES)
    chunks = -(-T // count)
    q = jnp.pad(q, ((0, 0), (0, chunks * count - T), (0, 0), (0, 0)))
    q = q.reshape(B, chunks, count, K, N // K, H).transpose(1, 0, 3, 2, 4, 5)
    q = q.reshape(chunks, B, K, count * (N // K), H)

    def attend(queries: Float[Array, "B K R H"], first: int | Int[Array, ""]) -> Float[Array, "B K R H"]:
        R = queries.shape[2]
        slot = held[:, None] + first + jnp.arange(R, dtype=jnp.int32)[None] // (N // K)
        state = _nothing(queries)
        if prefix is not None:
            # The rows' queries side by side: every key of the prefix is read once for all of them.
            side = lambda x: x.swapaxes(0, 1).reshape(1, K, B * R, x.shape[-1])
            apart = lambda x: x.reshape(K, B, R, x.shape[-1]).swapaxes(0, 1)
            position = (prefix.length + slot).reshape(1, 1, B * R, 1)
            last = jnp.broadcast_to(prefix.length - 1, position.shape)
            seen = (prefix.keys, prefix.values, layer, last, position)
            state = _merged(tuple(map(side, state)), side(queries), *seen, window, scale)
            state = tuple(map(apart, state))
        slot = slot[:, None, :, None]
        out, _, total = _merged(state, queries, keys, values, layer, slot, slot, window, scale)
        return (out / total).astype(queries.dtype)

    if chunks == 1:
        out = attend(q[0], 0)[None]
    else:
        first = count * jnp.arange(chunks, dtype=jnp.int32)
        out = lax.map(lambda chunk: attend(*chunk), (q, first))
    out = out.reshape(chunks, B, K, count, N // K, H).transpose(1, 0, 3, 2, 4, 5)
    return out.reshape(B, chunks * count, N, H)[:, :T]


_State = tuple[Float[Array, "B K R H"], Float[Array, "B K R 1"], Float[Array, "B K R 1"]]
"""Of every query so far: the weighted sum of values, the highest score, the sum of weights."""


def _nothing(queries: Float[Array, "B K R H"]) -> _State:
    """The state before any key was seen."""
    wide = np.promote_types(np.float32, queries.dtype)
    rows = (*queries.shape[:3], 1)
    return jnp.zeros(queries.shape, wide), jnp.full(rows, _lowest(wide), wide), jnp.zeros(rows, wide)


def _lowest(dtype: np.dtype) -> float:
    """The score of a key that is not seen."""
    return float(jnp.finfo(dtype).min) / 4


def _merged(
    state: _State,
    queries: Float[Array, "B K R H"],
    keys: Float[Array, "L B K S H"],
    values: Float[Array, "L B K S H"],
    layer: Int[Array, ""],
    last: Int[Array, "B 1 R 1"],
    position: Int[Array, "B 1 R 1"],
    window: int | None,
    scale: float,
) -> _State:
    """The state of the R = T * G queries that share a key head once they have seen these keys too.

    Args:
        last: the last key that each query sees.
        position: each query's, counted from key 0; the window reaches back from it.
        state, queries, keys, values, layer, window, scale: as in `cached_attention`.
    """
    B, K, R, H = queries.shape
    S = keys.shape[3]
    wide = np.promote_types(np.float32, queries.dtype)
    size = _block(S, B * K * H * keys.dtype.itemsize, B * K * R * wide.itemsize)
    lowest = _lowest(wide)
    zero = jnp.zeros_like(layer)

    def merge(j: Int[Array, ""], state: _State) -> _State:
        out, top, total = state
        start = jnp.minimum(j * size, S - size)  # the last block may overlap the one before
        at = (layer, zero, zero, start, zero)
        block = lambda x: lax.dynamic_slice(x, at, (1, B, K, size, H))[0]
        scores = _dot("bkrh,bksh->bkrs", queries, block(keys).astype(queries.dtype), wide) * scale
        key = start + jnp.arange(size, dtype=jnp.int32)[None, None, None]
        seen = (key >= j * size) & (key <= last)
        if window is not None:
            seen = seen & (key > position - window)
        scores = jnp.where(seen, scores, lowest)
        highest = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
        weights, kept = jnp.exp(scores - highest), jnp.exp(top - highest)
        new = _dot(
            "bkrs,bksh->bkrh", weights.astype(queries.dtype), block(values).astype(queries.dtype), wide
        )
        # What came before the first key that a query sees weighs exp(lowest - highest) = 0 from then on.
        return out * kept + new, highest, total * kept + weights.sum(axis=-1, keepdims=True)

    begin = 0 if window is None else jnp.maximum(position.min() + 1 - window, 0) // size
    end = (jnp.minimum(last.max() + 1, S) + size - 1) // size
    return lax.fori_loop(begin, end, merge, state)


def _block(S: int, bytes_per_key: int, bytes_of_scores: int) -> int:
    """Keys read at a time: on a CPU a block stays in its cache, elsewhere it should fill the device.

    bytes_of_scores: that one key makes with all queries; a block's are never more than four times its keys'
    share.
    """
    most = (1 << 21) if target().platform == "cpu" else 1 << 28
    return min(S, max(64, min(most // bytes_per_key, 4 * most // bytes_of_scores)))


def _dot(spec: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: np.dtype) -> Float[Array, "..."]:
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)
