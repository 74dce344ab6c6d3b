"""Attention: one door, whatever computes it."""

import jax
import jax.numpy as jnp
from jax import Array


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Array | None = None,
    kv_segment_ids: Array | None = None,
    offset: int | Array | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    kernel: str = "auto",
) -> Array:
    """Grouped-query softmax attention, [B, T, N, H] -> [B, T, N, H].

    Args:
        q: [B, T, N, H].
        k, v: [B, S, K, H] with N a multiple of K; query head n reads key head n // (N // K).
        causal: query t, standing at key position p = t + offset, sees keys 0..p.
        window: of those, it sees only the last `window`: keys p - window + 1..p (needs `causal`).
        segment_ids: i32[B, T]; attend inside the same segment only.
        kv_segment_ids: i32[B, S]; default segment_ids.
        offset: key position of query 0; default S - T, which aligns the queries to the end of the keys.
            An int, or an array i32[] or i32[B] (XLA kernel only).
        scale: factor on the scores; default H**-0.5.
        dropout: rate on the attention weights (XLA kernel only); needs `key`.
        kernel: "auto", or one by name.

    A query that may see no key gives zeros.
    """
    if kernel not in ("auto", "xla"):
        raise ValueError(f"attention kernel {kernel!r} is not one of: auto, xla.")
    if segment_ids is not None and kv_segment_ids is None:
        kv_segment_ids = segment_ids
    offset = k.shape[1] - q.shape[1] if offset is None else offset
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = _mask(q.shape[1], k.shape[1], offset, causal, window, segment_ids, kv_segment_ids)
    return _xla(q, k, v, mask, scale, dropout, key)


def _mask(T, S, offset, causal, window, segment_ids, kv_segment_ids):
    """bool[1 or B, T, S]: which keys each query sees."""
    ahead = (
        jnp.reshape(jnp.asarray(offset, jnp.int32), (-1, 1, 1))
        + jnp.arange(T, dtype=jnp.int32)[None, :, None]
    )
    distance = ahead - jnp.arange(S, dtype=jnp.int32)[None, None, :]
    mask = jnp.ones((1, T, S), bool)
    if causal:
        mask = mask & (distance >= 0)
    if window is not None:
        mask = mask & (distance < window)
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == kv_segment_ids[:, None, :])
    return mask


def _xla(q, k, v, mask, scale, dropout, key):
    B, T, N, H = q.shape
    K = k.shape[2]
    wide = jnp.promote_types(jnp.float32, q.dtype)
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=wide) * jnp.asarray(
        scale, wide
    )
    mask = mask[:, None, None]
    scores = jnp.where(mask, scores, jnp.finfo(wide).min)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)
    if dropout:
        kept = jax.random.bernoulli(key, 1.0 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1.0 - dropout), 0)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=wide)
    return out.reshape(B, T, N, H).astype(q.dtype)
