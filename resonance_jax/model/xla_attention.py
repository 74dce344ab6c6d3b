"""Attention by its definition, with all [T, S] scores in memory: for short sequences and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from resonance_jax.model.dropout import dropout as drop


def xla_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    window: int | None,
    segment_ids: Int[Array | np.ndarray, "B T"] | None,
    kv_segment_ids: Int[Array | np.ndarray, "B S"] | None,
    offset: int | Int[Array | np.ndarray, ""] | Int[Array | np.ndarray, "B"],
    scale: float,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention; arguments as `attention`'s, all of them given."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    wide = np.promote_types(np.float32, q.dtype)
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=wide) * scale
    seen = _visible(T, S, offset, causal, window, segment_ids, kv_segment_ids)[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(wide).min), axis=-1)
    weights = jnp.where(seen, weights, 0)  # where nothing is seen, softmax is uniform
    weights = drop(weights, dropout, key)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=wide)
    return out.reshape(B, T, N, H).astype(q.dtype)


def _visible(
    T: int,
    S: int,
    offset: int | Int[Array | np.ndarray, ""] | Int[Array | np.ndarray, "B"],
    causal: bool,
    window: int | None,
    segment_ids: Int[Array | np.ndarray, "B {T}"] | None,
    kv_segment_ids: Int[Array | np.ndarray, "B {S}"] | None,
) -> Bool[Array, "rows {T} {S}"]:
    """Which keys each query sees, for all rows at once (one row) or for each of the B."""
    first = jnp.reshape(jnp.asarray(offset, jnp.int32), (-1, 1, 1))
    query = first + jnp.arange(T, dtype=jnp.int32)[None, :, None]
    back = query - jnp.arange(S, dtype=jnp.int32)[None, None, :]
    seen = jnp.ones((1, T, S), bool)
    if causal:
        seen = seen & (back >= 0)
    if window is not None:
        seen = seen & (back < window)
    if segment_ids is not None and kv_segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == kv_segment_ids[:, None, :])
    return seen
