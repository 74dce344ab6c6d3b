"""One layer of the decoder: norm, attention, norm, MLP, and the products that they are made of."""

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from resonance_jax import rope
from resonance_jax.model.cache_protocol import Attend
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.dropout import dropout, split
from resonance_jax.model.layer_types import LayerType
from resonance_jax.model.lora import Adapted
from resonance_jax.model.sequence import attention
from resonance_jax.parallel.mesh import automatic_axes, constrain

ACTIVATIONS = ("batch", "time", None)
"""Logical axes of the residual stream [B, T, D]."""
Tap: TypeAlias = Callable[[str, Float[Array, "B T *rest"]], Float[Array, "B T *rest"]]
"""tap(name, value) -> value: sees, and may replace, a value inside a layer."""


def rms_norm(x: Float[Array, "*rows D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*rows D"]:
    """x / rms(x) * scale over the last axis, in promote_types(float32, x.dtype), returned in x.dtype.

    Args:
        x: any rows.
        scale: one factor per dim.
        eps: added to the mean square.
    """
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    # HF's order: back to the activations' dtype before the scale.
    return normed.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


def product(
    x: Float[Array, "*rows I"], weight: Float[Array, "I O"], dtype: DTypeLike | None = None
) -> Float[Array, "*rows O"]:
    """x @ weight in x's dtype, through one tall 2-D product (a fifth faster on CPU).

    Args:
        x: any rows.
        weight: cast to x's dtype.
        dtype: of the result, and of its sums; default x's.
    """
    weight = weight.astype(x.dtype)
    if automatic_axes(x).get("sequence", 1) > 1:  # flattening rows and time together would gather the time
        return jnp.einsum("...i,io->...o", x, weight, preferred_element_type=dtype)
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), weight, preferred_element_type=dtype)
    return flat.reshape(*x.shape[:-1], weight.shape[-1])


def dense(
    x: Float[Array, "*rows I"], weight: Float[Array, "I O"] | Adapted, key: Key[Array, ""] | None = None
) -> Float[Array, "*rows O"]:
    """x through a weight and its adapter, if it has one.

    Args:
        x: any rows.
        weight: [I, O], with an adapter or without.
        key: for the adapter's dropout, in training.
    """
    if not isinstance(weight, Adapted):
        return product(x, weight)
    low = product(dropout(x, weight.dropout, key), weight.a)
    return product(x, weight.weight) + product(low, weight.b) * jnp.asarray(weight.scale, x.dtype)


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
            [B, T, D], which are added to the stream; used by the parity checks.
        attend: takes the place of attention; used by caches, which keep the keys.
        kind: the type of this layer; default: that of the first.

    Returns:
        The residual stream after this layer.
    """
    tap = tap or (lambda name, value: value)
    c, kind = config, kind or config.types[0]
    B, T, _ = x.shape
    keys = split(key, 4)

    def linear(name: str, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        weight = p[name]
        own = None
        if key is not None and isinstance(weight, Adapted):
            own = jax.random.fold_in(key, crc32(name.encode()))
        return dense(x, weight, own)

    def norm(name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scale = p[name]
        assert not isinstance(scale, Adapted)
        return rms_norm(x, scale, c.norm_eps)

    h = norm("attn_norm", x)
    q = linear("q", h).reshape(B, T, c.n_heads, c.head_dim)
    k = linear("k", h).reshape(B, T, c.n_kv_heads, c.head_dim)
    v = linear("v", h).reshape(B, T, c.n_kv_heads, c.head_dim)
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
    x = constrain(x + dropout(out, c.dropout, keys[1]), ACTIVATIONS)
    h = norm("mlp_norm", x)
    if c.mlp == "swiglu":
        h = jax.nn.silu(linear("gate", h)) * linear("up", h)
    else:
        h = dropout(jax.nn.relu(linear("up", h)), c.dropout, keys[2])
    out = tap("mlp", linear("down", h))
    return constrain(x + dropout(out, c.dropout, keys[3]), ACTIVATIONS)
