"""Attention of new tokens over a cache of keys and values, read where it lies.

The cache is never copied or cut out of its stack of layers: keys are read block by block, only those that
some query sees, and the softmax is merged block by block (the online softmax of Milakov & Gimelshein 2018).
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from resonance_jax.model.lowering import target

QUERIES = 128
"""New tokens per row that attend at a time."""


def cached_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "L B K S H"],
    values: Float[Array, "L B K S H"],
    layer: Int[Array, ""],
    held: Int[Array, "B"],
    *,
    window: int | None,
    scale: float,
) -> Float[Array, "B T N H"]:
    """Causal softmax attention over one layer of a cache.

    Statistics are in promote_types(float32, dtype). Scores are made for one block of keys and at most QUERIES
    tokens per row at a time. Not differentiable.

    Args:
        q: query t of row b stands at position held[b] + t and sees the keys up to it.
        keys, values: the cache, with those of the new tokens already written. Query head n reads key head
            n // (N // K).
        layer: which of the L.
        held: how many tokens of each row came before these.
        window: see only the last `window` keys; None for all.
        scale: factor on the scores.

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
        position = held[:, None] + first + jnp.arange(queries.shape[2], dtype=jnp.int32)[None] // (N // K)
        return _merged(queries, keys, values, layer, position[:, None, :, None], window, scale)

    if chunks == 1:
        out = attend(q[0], 0)[None]
    else:
        first = count * jnp.arange(chunks, dtype=jnp.int32)
        out = lax.map(lambda chunk: attend(*chunk), (q, first))
    out = out.reshape(chunks, B, K, count, N // K, H).transpose(1, 0, 3, 2, 4, 5)
    return out.reshape(B, chunks * count, N, H)[:, :T]


_State = tuple[Float[Array, "B K R H"], Float[Array, "B K R 1"], Float[Array, "B K R 1"]]
"""Of every query so far: the weighted sum of values, the highest score, the sum of weights."""


def _merged(
    queries: Float[Array, "B K R H"],
    keys: Float[Array, "L B K S H"],
    values: Float[Array, "L B K S H"],
    layer: Int[Array, ""],
    position: Int[Array, "B 1 R 1"],
    window: int | None,
    scale: float,
) -> Float[Array, "B K R H"]:
    """Attention of the R = T * G queries that share a key head; `position` is each query's."""
    B, K, R, H = queries.shape
    S = keys.shape[3]
    size = _block(S, B * K * H * keys.dtype.itemsize)
    wide = np.promote_types(np.float32, queries.dtype)
    lowest = jnp.finfo(wide).min / 4
    zero = jnp.zeros_like(layer)

    def merge(j: Int[Array, ""], state: _State) -> _State:
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


def _block(S: int, bytes_per_key: int) -> int:
    """Keys read at a time: on a CPU a block stays in its cache, elsewhere it should fill the device."""
    most = (1 << 21) if target().platform == "cpu" else 1 << 28
    return min(S, max(64, most // bytes_per_key))


def _dot(spec: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: np.dtype) -> Float[Array, "..."]:
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)
