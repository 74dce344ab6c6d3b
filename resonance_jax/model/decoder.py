"""The decoder: a pure function of (config, params, tokens, frequencies), in a thin Flax NNX container.

LLaMA and PosGen's T5-style stack are the same code under two configurations. The encoding is an argument:
one compiled program serves every table of the same shape. Layers are stacked and scanned (model.stack), so
compile time does not grow with depth.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypedDict, TypeVar, Unpack, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Integer, Key, PRNGKeyArray, Shaped

from resonance_jax import rope
from resonance_jax.model import layer_types, parameters
from resonance_jax.model.cache_protocol import Cache
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder_layer import ACTIVATIONS, rms_norm
from resonance_jax.model.dropout import dropout, split
from resonance_jax.model.linear import product
from resonance_jax.model.lora import AdaptedParams
from resonance_jax.model.parameters import Params
from resonance_jax.model.stack import run_stack, turns
from resonance_jax.parallel.mesh import constrain

Positions: TypeAlias = Integer[Array | np.ndarray, "T"] | Integer[Array | np.ndarray, "B T"]
Tokens: TypeAlias = Integer[Array | np.ndarray, "B T"]
Segments: TypeAlias = Int[Array | np.ndarray, "B T"]
Weights: TypeAlias = Params | AdaptedParams
"""With adapters or without."""
_Cache = TypeVar("_Cache", bound=Cache)


def segment_positions(segment_ids: Int[Array | np.ndarray, "B T"]) -> Int[Array, "B T"]:
    """Positions counted from the start of each packed document."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None], segment_ids.shape)
    first = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


def _check(
    config: DecoderConfig,
    tokens: Shaped[Array | np.ndarray, "..."],
    freqs: rope.Tables,
    positions: Shaped[Array | np.ndarray, "..."] | None,
    segment_ids: Shaped[Array | np.ndarray, "..."] | None,
    key: Key[Array, ""] | None,
    cache: Cache | None,
) -> None:
    """Raise ValueError for arguments of `forward` that do not fit together."""
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
    layer_types.tables(config.types, config.head_dim, freqs)
    if cache is not None:
        if not (positions is segment_ids is key is None):
            raise ValueError(
                "a cache counts the positions of one document per row, without dropout: "
                "leave positions, segment_ids and key out."
            )
        cache.check(config, tokens, freqs)


def embedded(
    config: DecoderConfig, table: Float[Array, "V D"], tokens: Tokens, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """The rows of the embedding in `dtype`, times embed_scale."""
    x = table[tokens].astype(dtype)
    return x if config.embed_scale is None else x * jnp.asarray(config.embed_scale, dtype)


def final_norm(config: DecoderConfig, params: Weights, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """The norm after the last layer."""
    return rms_norm(x, params["final_norm"], config.norm_eps, config.norm_offset)


def _hidden_states(
    config: DecoderConfig,
    params: Weights,
    tokens: Tokens,
    freqs: rope.Tables,
    positions: Positions | None,
    segment_ids: Segments | None,
    cache: _Cache | None,
    key: Key[Array, ""] | None,
) -> tuple[Float[Array, "B T D"], _Cache | None]:
    """`hidden_states`, and the cache if there is one."""
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
    angles = turns(config, freqs, jnp.asarray(positions), jnp.promote_types(jnp.float32, dtype))
    keys = split(key, 3)
    # Rows first, then the dtype: the gradient of a row adds up in the parameters' precision.
    # Of a table cut both ways the compiler would look up whole rows everywhere, and cut them afterwards.
    table = constrain(params["embed"], ("vocab", None))
    x = constrain(embedded(config, table, tokens, dtype), ACTIVATIONS)
    x = dropout(x, config.dropout, keys[0])

    x, cache = run_stack(config, params["layers"], x, angles, segment_ids, cache, keys[1])
    x = dropout(final_norm(config, params, x), config.dropout, keys[2])
    x = x if config.head_scale is None else x * jnp.asarray(config.head_scale, x.dtype)
    return x, None if cache is None else cache.advanced(tokens.shape[1])


@overload
def hidden_states(
    config: DecoderConfig,
    params: Weights,
    tokens: Tokens,
    freqs: rope.Tables,
    *,
    positions: Positions | None = None,
    segment_ids: Segments | None = None,
    key: Key[Array, ""] | None = None,
    cache: None = None,
) -> Float[Array, "B T D"]: ...
@overload
def hidden_states(
    config: DecoderConfig, params: Weights, tokens: Tokens, freqs: rope.Tables, *, cache: _Cache
) -> tuple[Float[Array, "B T D"], _Cache]: ...
def hidden_states(
    config: DecoderConfig,
    params: Weights,
    tokens: Tokens,
    freqs: rope.Tables,
    *,
    positions: Positions | None = None,
    segment_ids: Segments | None = None,
    key: Key[Array, ""] | None = None,
    cache: _Cache | None = None,
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], _Cache]:
    """The last hidden states, in config.dtype: all of the decoder but its head (head_scale is applied).

    Args:
        config, params, tokens, freqs, positions, segment_ids, cache, key: as for `forward`.

    Returns:
        The hidden states, and with a cache also the cache with these tokens in it.

    Raises:
        ValueError: as `forward`.
    """
    x, after = _hidden_states(config, params, tokens, freqs, positions, segment_ids, cache, key)
    return x if after is None else (x, after)


def head(config: DecoderConfig, params: Weights) -> Float[Array, "D V"]:
    """The output weight: the head's own, or the embedding's where the two are tied."""
    if config.tie_embeddings:
        return params["embed"].T
    return params["head"]  # pyright: ignore[reportTypedDictNotRequiredAccess]  # there unless tied


def logits(config: DecoderConfig, params: Weights, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """The logits of hidden states, in promote_types(float32, x.dtype)."""
    return product(x, head(config, params), jnp.promote_types(jnp.float32, x.dtype))


@overload
def forward(
    config: DecoderConfig,
    params: Weights,
    tokens: Tokens,
    freqs: rope.Tables,
    *,
    positions: Positions | None = None,
    segment_ids: Segments | None = None,
    cache: None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B T V"]: ...
@overload
def forward(
    config: DecoderConfig, params: Weights, tokens: Tokens, freqs: rope.Tables, *, cache: _Cache
) -> tuple[Float[Array, "B T V"], _Cache]: ...
def forward(
    config: DecoderConfig,
    params: Weights,
    tokens: Tokens,
    freqs: rope.Tables,
    *,
    positions: Positions | None = None,
    segment_ids: Segments | None = None,
    cache: _Cache | None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], _Cache]:
    """Logits of every position, in promote_types(float32, config.dtype).

    Args:
        config: the decoder.
        params: its weights, with adapters or without.
        tokens: token ids.
        freqs: the encoding: one table, or where layers differ one for each layer type by name.
        positions: of the tokens, [T] or [B, T]; default 0 … T-1, or counted from the start of each segment.
        segment_ids: of packed documents; tokens see their own document only.
        cache: the tokens before these; positions and encoding are then the cache's own.
        key: for dropout, in training only.

    Returns:
        The logits, and with a cache also the cache with these tokens in it.

    Raises:
        ValueError: other shapes, tokens that are not integers, an encoding that rotates more dims than a head
            has, or a cache that was filled under another table (outside jit: inside, tables have no values to
            compare).
    """
    x, after = _hidden_states(config, params, tokens, freqs, positions, segment_ids, cache, key)
    scores = logits(config, params, x)
    return scores if after is None else (scores, after)


_forward = jax.jit(forward, static_argnums=0)


@functools.cache
def _creator(config: DecoderConfig, mesh: Mesh | None) -> Callable[[Key[Array, ""]], Params]:
    """The compiled function that makes fresh parameters of a key, where they lie on the mesh."""
    dtype = jnp.promote_types(jnp.float32, parameters.real_dtype(config.dtype))
    where = None if mesh is None else parameters.shardings(config, mesh)
    return jax.jit(lambda key: parameters.create(config, key, dtype), out_shardings=where)


def reach(spec: rope.Specs) -> int | None:
    """How many positions an encoding says that it reaches: int(scale * train_length).

    None where it states no training length. A dynamic method has scale 1 and reaches further than it says.
    """
    return None if spec.train_length is None else int(spec.scale * spec.train_length)


class DecoderFields(TypedDict, total=False):
    """What Decoder.replace takes: the arguments of Decoder."""

    config: DecoderConfig
    mesh: Mesh | None
    rope: rope.Specs | None
    params: Params
    context_length: int | None
    source: Path | None


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
        source: the checkpoint that the weights came from, whose tokenizer and token ids an export keeps.
    """

    def __init__(
        self,
        config: DecoderConfig,
        key: PRNGKeyArray | None = None,
        mesh: Mesh | None = None,
        rope: rope.Specs | None = None,
        params: Params | None = None,
        context_length: int | None = None,
        source: Path | None = None,
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.rope = rope
        self.context_length = context_length
        self.source = source
        if params is None:
            params = _creator(config, mesh)(jax.random.key(0) if key is None else key)
        self.embed = nnx.Param(params["embed"])
        self.layers = nnx.Dict({name: nnx.Param(value) for name, value in params["layers"].items()})
        self.final_norm = nnx.Param(params["final_norm"])
        if not config.tie_embeddings:
            assert "head" in params
            self.head = nnx.Param(params["head"])

    def __call__(
        self,
        tokens: Int[ArrayLike, "B T"],
        freqs: rope.Tables,
        positions: Integer[Array | np.ndarray, "..."] | None = None,
        segment_ids: Segments | None = None,
        cache: Cache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], Cache]:
        """Logits [B, T, V], or with a cache (logits, cache): `forward`, compiled. The cache passed in stays
        as it was."""
        tokens = jnp.asarray(tokens)
        if cache is not None:
            _check(self.config, tokens, freqs, positions, segment_ids, key, cache)
        return _forward(
            self.config,
            self.params,
            tokens,
            freqs,
            positions=positions,
            segment_ids=segment_ids,
            cache=cache,
            key=key,
        )

    @property
    def params(self) -> Params:
        """The parameters as a plain pytree: what every jitted function here takes."""
        return cast(Params, nnx.to_pure_dict(nnx.state(self, nnx.Param)))

    def replace(self, **changes: Unpack[DecoderFields]) -> "Decoder":
        """The same decoder, but for the arguments that are named."""
        own: DecoderFields = {
            "config": self.config,
            "mesh": self.mesh,
            "rope": self.rope,
            "context_length": self.context_length,
            "source": self.source,
        }
        if "params" not in changes:
            own["params"] = self.params
        return Decoder(**{**own, **changes})

    def replace_params(self, params: Params) -> "Decoder":
        """The same decoder with other weights."""
        return self.replace(params=params)

    def shardings(self) -> parameters.Tree[NamedSharding]:
        """Where each parameter lies on the mesh, as the params pytree. ValueError without a mesh."""
        if self.mesh is None:
            raise ValueError("this decoder lies on no mesh; make it with mesh=make_mesh(...).")
        return parameters.shardings(self.config, self.mesh)

    def count_parameters(self) -> int:
        """The number of weights."""
        return sum(x.size for x in jax.tree.leaves(self.params))
