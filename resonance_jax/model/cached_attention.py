"""Attention of new tokens over the keys and values kept for earlier ones, in the place where they are kept.

The cache is never copied or cut out of its stack of layers: keys are read a block at a time, only those that
some query sees, and the softmax is merged block by block (the online softmax of Milakov & Gimelshein 2018).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

QUERIES = 128
"""New tokens of a row that attend at a time."""


def cached_attention(
    q: Array, keys: Array, values: Array, layer: Array, held: Array, *, window: int | None, scale: float
) -> Array:
    """Causal softmax attention over one layer of a cache: [B, T, N, H] -> [B, T, N, H] in q's dtype.

    Statistics are in promote_types(float32, dtype). Scores are made for a block of keys and at most QUERIES
    tokens a row at a time. Not differentiable.

    Args:
        q: [B, T, N, H]; query t of row b stands at position held[b] + t and sees the keys up to it.
        keys, values: [L, B, K, S, H], those of the new tokens already written. Query head n reads key head
            n // (N // K).
        layer: i32[], which of the L.
        held: i32[B], how many tokens of each row came before these.
        window: see only the last `window` keys.
        scale: factor on the scores.
    """
    B, T, N, H = q.shape
    K = keys.shape[2]
    count = min(T, QUERIES)
    chunks = -(-T // count)
    q = jnp.pad(q, ((0, 0), (0, chunks * count - T), (0, 0), (0, 0)))
    q = q.reshape(B, chunks, count, K, N // K, H).transpose(1, 0, 3, 2, 4, 5)
    q = q.reshape(chunks, B, K, count * (N // K), H)

    def attend(queries, first):
        position = held[:, None] + first + jnp.arange(queries.shape[2], dtype=jnp.int32)[None] // (N // K)
        return _merged(queries, keys, values, layer, position[:, None, :, None], window, scale)

    if chunks == 1:
        out = attend(q[0], 0)[None]
    else:
        first = count * jnp.arange(chunks, dtype=jnp.int32)
        out = lax.map(lambda chunk: attend(*chunk), (q, first))
    out = out.reshape(chunks, B, K, count, N // K, H).transpose(1, 0, 3, 2, 4, 5)
    return out.reshape(B, chunks * count, N, H)[:, :T]


def _merged(queries, keys, values, layer, position, window, scale):
    """[B, K, R, H] -> [B, K, R, H] for R = T * G queries that share a key head; position i32[B, 1, R, 1]."""
    B, K, R, H = queries.shape
    S = keys.shape[3]
    size = _block(S, B * K * H * keys.dtype.itemsize)
    wide = np.promote_types(np.float32, queries.dtype)
    lowest = jnp.finfo(wide).min / 4
    zero = jnp.zeros_like(layer)

    def merge(j, state):
        out, top, total = state
        start = jnp.minimum(j * size, S - size)  # the last block may overlap the one before
        at = (layer, zero, zero, start, zero)
        block = lambda x: lax.dynamic_slice(x, at, (1, B, K, size, H))[0]
        scores = _dot("bkrh,bksh->bkrs", queries, block(keys).astype(queries.dtype), wide) * scale
        key = start + jnp.arange(size, dtype=jnp.int32)[None, None, None]
        seen = (key >= j * size) & (key <= position)
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
    end = (jnp.minimum(position.max() + 1, S) + size - 1) // size
    rows = (B, K, R, 1)
    state = jnp.zeros((B, K, R, H), wide), jnp.full(rows, lowest, wide), jnp.zeros(rows, wide)
    out, _, total = lax.fori_loop(begin, end, merge, state)
    return (out / total).astype(queries.dtype)


def _block(S: int, bytes_a_key: int) -> int:
    """Keys read at a time: on a CPU a block stays in its cache, elsewhere it should fill the device."""
    most = (1 << 21) if jax.default_backend() == "cpu" else 1 << 28
    return min(S, max(64, most // bytes_a_key))


def _dot(spec, x, y, dtype):
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)
