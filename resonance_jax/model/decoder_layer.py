"""One layer of the decoder: norm, attention, norm, MLP."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from resonance_jax import rope
from resonance_jax.model.cache_protocol import Attend
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.dropout import dropout, split
from resonance_jax.model.gated_mlp import gated, gated_mlp
from resonance_jax.model.layer_types import LayerType
from resonance_jax.model.linear import dense
from resonance_jax.model.lora import Adapted
from resonance_jax.model.parameters import GATED, declare
from resonance_jax.model.sequence import attention
from resonance_jax.parallel.gathered_weight import gathered_weight
from resonance_jax.parallel.mesh import constrain

ACTIVATIONS = ("batch", "time", None)
"""Logical axes of the residual stream [B, T, D]."""
RECOMPUTED = ("attention", "full")
"""Settings of remat under which nothing inside the MLP is kept for the gradient."""
Tap: TypeAlias = Callable[[str, Float[Array, "B T *rest"]], Float[Array, "B T *rest"]]
"""tap(name, value) -> value: sees, and may replace, a value inside a layer."""


def rms_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, "D"], eps: float, offset: float = 0.0
) -> Float[Array, "*rows D"]:
    """x / rms(x) * (offset + scale) over the last axis, returned in x.dtype.

    The norm is computed in promote_types(float32, x.dtype); so is the product with a scale that has an
    offset, as Gemma does it.

    Args:
        x: any rows.
        scale: one factor per dim.
        eps: added to the mean square.
        offset: added to the scale.
    """
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if offset:
        factor = offset + scale.astype(wide.dtype)
        return (normed * factor.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)
    # HF's order: back to the activations' dtype before the scale.
    return normed.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


def layer(
    config: DecoderConfig,
    p: Mapping[str, Array | Adapted],
    x: Float[Array, "B T D"],
    cos: Float[Array, "*rows T pairs"] | None,
    sin: Float[Array, "*rows T pairs"] | None,
    segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
    key: Key[Array, ""] | None = None,
    tap: Tap | None = None,
    attend: Attend | None = None,
    kind: LayerType | None = None,
) -> Float[Array, "B T D"]:
    """One pre-norm block: attention and MLP, each added to the residual stream.

    Args:
        config: the decoder.
        p: one layer's parameters by name, each without the axis of the layers.
        x: the residual stream.
        cos, sin: of every pair, [T, R/2] or [B, T, R/2]; a layer without RoPE needs none.
        segment_ids: tokens see their own segment only.
        key: for dropout, in training.
        tap: called for "q" [B, T, N, H] and "k" [B, T, K, H] after rotation, and for "attention" and "mlp"
            [B, T, D], which are added to the stream, normed first where the decoder does so; used by the
            parity checks.
        attend: takes the place of attention; used by caches, which keep the keys.
        kind: the type of this layer; default: that of the first.

    Returns:
        The residual stream after this layer.
    """
    tap = tap or (lambda name, value: value)
    c, kind = config, kind or config.types[0]
    B, T, _ = x.shape
    keys = split(key, 4)
    # The few tokens that a cache is given travel instead of the weights.
    whole, declared = attend is None, declare(c)["layers"]

    def weight(name: str) -> Float[Array, "I O"] | Adapted:
        w, axes = p[name], declared[name].axes[1:]
        if not whole:
            return w
        if isinstance(w, Adapted):
            return dataclasses.replace(w, weight=gathered_weight(w.weight, axes, x.dtype))
        return gathered_weight(w, axes, x.dtype)

    def linear(name: str, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        own = None
        if key is not None and isinstance(p[name], Adapted):
            own = jax.random.fold_in(key, crc32(name.encode()))
        return dense(x, weight(name), own)

    def norm(name: str, x: Float[Array, "B T *rest"]) -> Float[Array, "B T *rest"]:
        scale = p[name]
        assert not isinstance(scale, Adapted)
        return rms_norm(x, scale, c.norm_eps, c.norm_offset)

    def heads(name: str, count: int) -> Float[Array, "B T N H"]:
        out = linear(name, h)
        if c.qkv_bias:
            bias = p[f"{name}_bias"]
            assert not isinstance(bias, Adapted)
            out = out + bias.astype(out.dtype)[None, None]
        return out.reshape(B, T, count, c.head_dim)

    h = norm("attn_norm", x)
    q, k, v = heads("q", c.n_heads), heads("k", c.n_kv_heads), heads("v", c.n_kv_heads)
    if c.qk_norm:
        q, k = norm("q_norm", q), norm("k_norm", k)
    if attend is None:
        rate = 0.0 if key is None else c.dropout
        attend = functools.partial(attention, segment_ids=segment_ids, dropout=rate, key=keys[0])
    if kind.rope:
        assert cos is not None and sin is not None
        q, k = (rope.rotate(each, cos, sin, c.rope_layout) for each in (q, k))
    out = attend(
        tap("q", q),
        tap("k", k),
        v,
        window=kind.window,
        scale=c.attention_scale,
        kernel=c.kernel,
    )
    out = tap("attention", linear("o", out.reshape(B, T, -1)))
    out = norm("attn_post_norm", out) if c.post_norms else out
    x = constrain(x + dropout(out, c.dropout, keys[1]), ACTIVATIONS)
    h = norm("mlp_norm", x)
    weights = [weight(name) for name in ("gate", "up", "down")] if c.mlp in GATED else []
    plain = [w for w in weights if not isinstance(w, Adapted)]
    if c.remat in RECOMPUTED and len(plain) == 3:
        out = gated_mlp(h, plain[0], plain[1], plain[2], c.mlp)
    elif c.mlp in GATED:
        out = linear("down", gated(linear("gate", h), linear("up", h), c.mlp))
    else:
        out = linear("down", dropout(jax.nn.relu(linear("up", h)), c.dropout, keys[2]))
    out = tap("mlp", out)
    out = norm("mlp_post_norm", out) if c.post_norms else out
    return constrain(x + dropout(out, c.dropout, keys[3]), ACTIVATIONS)
