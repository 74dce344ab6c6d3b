"""The decoder: a pure function of (config, params, tokens, frequencies), in a thin Flax NNX container.

LLaMA and PosGen's T5-style stack are the same code under two configurations. The encoding is an argument:
one compiled program serves every table of the same shape. Layers are stacked and run under lax.scan, so
compile time does not grow with depth.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypedDict, Unpack
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from resonance_jax import rope
from resonance_jax.model import parameters
from resonance_jax.model.block_pairs import SAVED
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.dropout import dropout
from resonance_jax.model.lora import Adapted
from resonance_jax.model.sequence import attention
from resonance_jax.parallel.mesh import automatic_axes, constrain

Params = dict[str, Any]
ACTIVATIONS = ("batch", "time", None)
"""Logical axes of the residual stream [B, T, D]."""


class Cache(Protocol):
    """What the decoder asks of a cache: a pytree of the keys and values that it has seen (generate.Cache)."""

    freqs: rope.Frequencies

    def check(self, config: DecoderConfig, tokens: jax.Array, freqs: rope.Frequencies) -> None:
        """Raise ValueError if it cannot take these tokens [B, T] under this table."""

    def positions(self, count: int) -> jax.Array:
        """Of the next tokens of every row: i32[count] or i32[B, count]."""

    def attend(self, layer: jax.Array, q, k, v, **options) -> tuple[jax.Array, "Cache"]:
        """Write one layer's new keys and values, then attend: [B, T, N, H] and the cache with them in it."""

    def advanced(self, count: int) -> "Cache":
        """After the last layer: the cache that holds `count` tokens more in every row."""


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in promote_types(float32, x.dtype), returned in x.dtype."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    # HF's order: back to the activations' dtype before the scale.
    return normed.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


def product(x: jax.Array, weight: jax.Array, dtype=None) -> jax.Array:
    """x [..., I] @ weight [I, O] in x's dtype, through one tall 2-D product (a fifth faster on CPU).

    dtype: of the result, and of its sums.
    """
    weight = weight.astype(x.dtype)
    if automatic_axes(x).get("sequence", 1) > 1:  # flattening rows and time together would gather the time
        return jnp.einsum("...i,io->...o", x, weight, preferred_element_type=dtype)
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), weight, preferred_element_type=dtype)
    return flat.reshape(*x.shape[:-1], weight.shape[-1])


def dense(x: jax.Array, weight: jax.Array | Adapted, key: jax.Array | None = None) -> jax.Array:
    """x [..., I] through a weight [I, O] and its adapter, if it has one; key: for the adapter's dropout."""
    if not isinstance(weight, Adapted):
        return product(x, weight)
    low = product(dropout(x, weight.dropout, key), weight.a)
    return product(x, weight.weight) + product(low, weight.b) * jnp.asarray(weight.scale, x.dtype)


def layer(config: DecoderConfig, p: Params, x, cos, sin, segment_ids=None, key=None, tap=None, attend=None):
    """One pre-norm block: x [B, T, D] -> [B, T, D]. `p` holds one layer's parameters.

    tap(name, value) -> value: given "q" and "k" [B, T, N or K, H] after rotation and what attention and
    MLP add to the stream, "attention" and "mlp" [B, T, D]: for who compares layer by layer.
    attend(q, k, v, window=, scale=, kernel=): takes the place of attention, for who keeps the keys.
    """
    tap = tap or (lambda name, value: value)
    c = config
    B, T, _ = x.shape
    keys = [None] * 4 if key is None else list(jax.random.split(key, 4))

    def linear(name, x):
        own = key is not None and isinstance(p[name], Adapted)
        return dense(x, p[name], jax.random.fold_in(key, crc32(name.encode())) if own else None)

    h = rms_norm(x, p["attn_norm"], c.norm_eps)
    q = linear("q", h).reshape(B, T, c.n_heads, c.head_dim)
    k = linear("k", h).reshape(B, T, c.n_kv_heads, c.head_dim)
    v = linear("v", h).reshape(B, T, c.n_kv_heads, c.head_dim)
    if attend is None:
        rate = 0.0 if key is None else c.dropout
        attend = functools.partial(attention, segment_ids=segment_ids, dropout=rate, key=keys[0])
    out = attend(
        tap("q", rope.rotate(q, cos, sin, c.rope_layout)),
        tap("k", rope.rotate(k, cos, sin, c.rope_layout)),
        v,
        window=c.window,
        scale=c.attention_scale,
        kernel=c.kernel,
    )
    out = tap("attention", linear("o", out.reshape(B, T, -1)))
    x = constrain(x + dropout(out, c.dropout, keys[1]), ACTIVATIONS)
    h = rms_norm(x, p["mlp_norm"], c.norm_eps)
    if c.mlp == "swiglu":
        h = jax.nn.silu(linear("gate", h)) * linear("up", h)
    else:
        h = dropout(jax.nn.relu(linear("up", h)), c.dropout, keys[2])
    out = tap("mlp", linear("down", h))
    return constrain(x + dropout(out, c.dropout, keys[3]), ACTIVATIONS)


def _remat(config: DecoderConfig, fn):
    if config.remat == "none":
        return fn
    policy = {
        "full": None,
        "attention": jax.checkpoint_policies.save_only_these_names(*SAVED),
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[config.remat]
    return jax.checkpoint(fn, policy=policy, prevent_cse=False)  # inside a scan nothing can be merged away


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """Positions counted from the start of each packed document: i32[B, T] -> i32[B, T]."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None], segment_ids.shape)
    first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


def _check(config: DecoderConfig, tokens, freqs, positions, segment_ids, key, cache) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers [B, T], got {tokens.dtype}{list(tokens.shape)}.")
    if positions is not None and positions.shape not in (tokens.shape, tokens.shape[1:]):
        raise ValueError(
            f"positions must be [T] or [B, T] like tokens {list(tokens.shape)}, got {list(positions.shape)}."
        )
    if segment_ids is not None and segment_ids.shape != tokens.shape:
        raise ValueError(
            f"segment_ids must be [B, T] like tokens {list(tokens.shape)}, got {list(segment_ids.shape)}."
        )
    if freqs.step.ndim != 2:
        raise ValueError(
            f"expected one encoding (step [R/2, 2]), got {list(freqs.step.shape)}; vmap over stacked ones."
        )
    rotated = 2 * freqs.step.shape[0]
    if rotated > config.head_dim:
        raise ValueError(
            f"the encoding rotates {rotated} dims, but a head has {config.head_dim}; "
            f"make the frequencies with head_dim={config.head_dim}."
        )
    if cache is not None:
        if not (positions is segment_ids is key is None):
            raise ValueError(
                "a cache counts the positions of one document a row, without dropout: "
                "leave positions, segment_ids and key out."
            )
        cache.check(config, tokens, freqs)


def hidden_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    freqs: rope.Frequencies,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    cache: Cache | None = None,
    key: jax.Array | None = None,
) -> jax.Array | tuple[jax.Array, Cache]:
    """Everything but the head: i32[B, T] -> [B, T, D] in config.dtype, head_scale included.

    Arguments as in `forward`.
    """
    _check(config, tokens, freqs, positions, segment_ids, key, cache)
    dtype = parameters.real_dtype(config.dtype)
    if cache is not None:
        freqs, positions = cache.freqs, cache.positions(tokens.shape[1])
    if positions is None:
        positions = (
            jnp.arange(tokens.shape[1], dtype=jnp.int32)
            if segment_ids is None
            else segment_positions(segment_ids)
        )
    cos, sin = rope.cos_sin(freqs, positions, jnp.promote_types(jnp.float32, dtype))
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    # Rows first, then the dtype: the gradient of a row adds up in the parameters' precision.
    # Of a table cut both ways the compiler would look up whole rows everywhere, and cut them afterwards.
    table = constrain(params["embed"], ("vocab", None))
    x = constrain(table[tokens].astype(dtype), ACTIVATIONS)
    x = dropout(x, config.dropout, keys[0])

    def body(carry, scanned):
        x, cache = carry
        p, layer_key, index = scanned

        def attend(q, k, v, **options):
            nonlocal cache
            out, cache = cache.attend(index, q, k, v, **options)
            return out

        own = None if cache is None else attend
        return (layer(config, p, x, cos, sin, segment_ids, layer_key, attend=own), cache), None

    layer_keys = None if key is None else jax.random.split(keys[1], config.n_layers)
    indices = None if cache is None else jnp.arange(config.n_layers, dtype=jnp.int32)
    (x, cache), _ = jax.lax.scan(_remat(config, body), (x, cache), (params["layers"], layer_keys, indices))
    x = dropout(rms_norm(x, params["final_norm"], config.norm_eps), config.dropout, keys[2])
    x = x if config.head_scale is None else x * jnp.asarray(config.head_scale, x.dtype)
    return x if cache is None else (x, cache.advanced(tokens.shape[1]))


def head(config: DecoderConfig, params: Params) -> jax.Array:
    """The output weight [D, V]."""
    return params["embed"].T if config.tie_embeddings else params["head"]


def logits(config: DecoderConfig, params: Params, x: jax.Array) -> jax.Array:
    """Hidden states [..., D] -> [..., V] in promote_types(float32, x.dtype)."""
    return product(x, head(config, params), jnp.promote_types(jnp.float32, x.dtype))


def forward(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    freqs: rope.Frequencies,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    cache: Cache | None = None,
    key: jax.Array | None = None,
) -> jax.Array | tuple[jax.Array, Cache]:
    """Logits of every position: i32[B, T] -> [B, T, V] in promote_types(float32, config.dtype).

    freqs: the encoding. positions: i32[T] or i32[B, T], default 0 … T-1, or from the start of each
    document when packed. segment_ids: i32[B, T]; tokens see their own document only. cache: what came
    before; the result is then (logits, the cache with these tokens in it), and the positions and the table
    are the cache's own. key: for dropout, in training only. Raises ValueError for other shapes, for tokens
    that are no integers, when the encoding rotates more dims than a head has, and when the cache was filled
    under another table (outside jit: inside, tables have no values to compare).
    """
    options = dict(positions=positions, segment_ids=segment_ids, cache=cache, key=key)
    x = hidden_states(config, params, tokens, freqs, **options)
    if cache is None:
        return logits(config, params, x)
    x, cache = x
    return logits(config, params, x), cache


_forward = jax.jit(forward, static_argnums=0)


@functools.cache
def _creator(config: DecoderConfig, mesh: Mesh | None) -> Callable[[PRNGKeyArray], Params]:
    """The compiled function key -> fresh parameters, where they lie on the mesh."""
    dtype = jnp.promote_types(jnp.float32, parameters.real_dtype(config.dtype))
    where = None if mesh is None else parameters.shardings(config, mesh)
    return jax.jit(lambda key: parameters.create(config, key, dtype), out_shardings=where)


def reach(spec: rope.RopeSpec) -> int | None:
    """How many positions an encoding states that it reaches: int(scale * train_length), or None where it
    states no training length. A dynamic method has scale 1 and reaches further than it states."""
    return None if spec.train_length is None else int(spec.scale * spec.train_length)


class DecoderFields(TypedDict, total=False):
    """What Decoder.replace takes: the arguments of Decoder."""

    config: DecoderConfig
    mesh: Mesh | None
    rope: rope.RopeSpec | None
    params: Params
    context_length: int | None


class Decoder(nnx.Module):
    """The parameters of a decoder, by name, with what belongs to them: `lm(tokens, freqs)` gives logits.

    Args:
        config: the shape, and how it computes.
        key: of fresh parameters, where `params` is not given; default jax.random.key(0).
        mesh: cuts every parameter as its logical axes say (parallel.mesh.RULES); None: one device.
        rope: the encoding that the weights were trained under, None if it is not known. It is stated, not
            applied: every call names its own table.
        params: the params pytree (`lm.params` of another decoder).
        context_length: how many positions the checkpoint says that it serves (max_position_embeddings of
            a Hugging Face config.json), None if it does not say. Nothing is cut off there.
    """

    def __init__(
        self,
        config: DecoderConfig,
        key: PRNGKeyArray | None = None,
        mesh: Mesh | None = None,
        rope: rope.RopeSpec | None = None,
        params: Params | None = None,
        context_length: int | None = None,
    ):
        self.config = config
        self.mesh = mesh
        self.rope = rope
        self.context_length = context_length
        if params is None:
            params = _creator(config, mesh)(jax.random.key(0) if key is None else key)
        self.embed = nnx.Param(params["embed"])
        self.layers = nnx.Dict({name: nnx.Param(value) for name, value in params["layers"].items()})
        self.final_norm = nnx.Param(params["final_norm"])
        if not config.tie_embeddings:
            self.head = nnx.Param(params["head"])

    def __call__(
        self,
        tokens: Int[ArrayLike, "B T"],
        freqs: rope.Frequencies,
        positions: Int[ArrayLike, "..."] | None = None,
        segment_ids: Int[ArrayLike, "B T"] | None = None,
        cache: Cache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], Cache]:
        """Logits [B, T, V], or with a cache (logits, cache): `forward`, compiled. The cache passed in stays
        as it was."""
        tokens = jnp.asarray(tokens)
        options = dict(positions=positions, segment_ids=segment_ids, cache=cache, key=key)
        if cache is not None:
            _check(self.config, tokens, freqs, positions, segment_ids, key, cache)
        return _forward(self.config, self.params, tokens, freqs, **options)

    @property
    def params(self) -> Params:
        """The parameters as a plain pytree: what every jitted function here takes."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    def replace(self, **changes: Unpack[DecoderFields]) -> "Decoder":
        """The same decoder, but for the arguments that are named."""
        own: DecoderFields = {
            "config": self.config,
            "mesh": self.mesh,
            "rope": self.rope,
            "context_length": self.context_length,
        }
        if "params" not in changes:
            own["params"] = self.params
        return Decoder(**{**own, **changes})

    def replace_params(self, params: Params) -> "Decoder":
        """The same decoder with other weights."""
        return self.replace(params=params)

    def shardings(self) -> Params:
        """Where each parameter lies on the mesh, as the params pytree. ValueError without a mesh."""
        if self.mesh is None:
            raise ValueError("this decoder lies on no mesh; make it with mesh=make_mesh(...).")
        return parameters.shardings(self.config, self.mesh)

    def count_parameters(self) -> int:
        """The number of weights."""
        return sum(x.size for x in jax.tree.leaves(self.params))
