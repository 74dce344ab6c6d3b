"""The layers of the decoder, one after the other: scanned group by group, each under its type's own table."""

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from resonance_jax import rope
from resonance_jax.model import layer_types
from resonance_jax.model.block_pairs import SAVED
from resonance_jax.model.cache_protocol import Cache
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder_layer import layer
from resonance_jax.model.layer_types import Group, LayerType
from resonance_jax.model.lora import Adapted
from resonance_jax.parallel.mesh import automatic_axes

Turns: TypeAlias = Mapping[str, tuple[Float[Array, "*rows T pairs"], Float[Array, "*rows T pairs"]]]
"""cos and sin by layer type, of those that use RoPE."""
Layer: TypeAlias = Mapping[str, Array | Adapted]
"""Parameters of one layer by name, or of all layers, stacked [L, ...]."""
_Cache = TypeVar("_Cache", bound=Cache)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def turns(
    config: DecoderConfig,
    freqs: rope.Tables,
    positions: Int[Array | np.ndarray, "*rows T"],
    dtype: DTypeLike,
) -> Turns:
    """cos and sin of every layer type that uses RoPE, computed once for each table.

    Args:
        config: the decoder.
        freqs: one table, or one for each layer type by name.
        positions: of the tokens.
        dtype: of the result.

    Raises:
        ValueError: as layer_types.tables does.
    """
    named = layer_types.tables(config.types, config.head_dim, freqs)
    if not named:
        return {}
    distinct = {id(table): table for table in named.values()}
    made = {key: rope.cos_sin(table, positions, dtype) for key, table in distinct.items()}
    return {name: made[id(table)] for name, table in named.items()}


def run_stack(
    config: DecoderConfig,
    layers: Layer | tuple[Layer, ...],
    x: Float[Array, "B T D"],
    angles: Turns,
    segment_ids: Int[Array | np.ndarray, "B T"] | None,
    cache: _Cache | None,
    key: Key[Array, ""] | None,
) -> tuple[Float[Array, "B T D"], _Cache | None]:
    """All layers, and the cache with what they were given in it.

    Args:
        config: the decoder.
        layers: parameters by name, stacked [L, ...]; or each layer's by themselves, which makes a program
            as long as the layers are many.
        x: the embedded tokens.
        angles: cos and sin by layer type.
        segment_ids: tokens see their own segment only.
        cache: takes the keys and values, where there is one.
        key: for dropout, in training.
    """

    def one(kind: LayerType, group: Group) -> Callable[..., tuple[tuple, None]]:
        cos, sin = angles.get(kind.name, (None, None))

        def body(
            carry: tuple[Float[Array, "B T D"], _Cache | None],
            scanned: tuple[Layer, Key[Array, ""] | None, Int[Array, ""] | None],
        ) -> tuple[tuple[Float[Array, "B T D"], _Cache | None], None]:
            x, cache = carry
            p, layer_key, index = scanned
            if cache is None and index is not None:
                # Adds nothing, which the compiler cannot know: it would cast all layers' weights before the
                # first micro-batch otherwise, and keep them beside the parameters.
                nothing = jnp.minimum(index, 0)
                p = jax.tree.map(lambda w: w + nothing.astype(w.dtype), p)
            if cache is None or index is None:
                return (layer(config, p, x, cos, sin, segment_ids, layer_key, kind=kind), None), None
            kept = cache

            def attend(
                q: Float[Array, "B T N H"],
                k: Float[Array, "B T K H"],
                v: Float[Array, "B T K H"],
                *,
                window: int | None,
                scale: float | None,
                kernel: str,
            ) -> Float[Array, "B T N H"]:
                nonlocal kept
                out, kept = kept.attend(index, q, k, v, window=window, scale=scale, kernel=kernel)
                return out

            x = layer(config, p, x, cos, sin, segment_ids, layer_key, attend=attend, kind=kind)
            return (x, kept), None

        return _remat(config, body, alone=group.repeats == 1 and config.n_layers > 1)

    layer_keys = None if key is None else jax.random.split(key, config.n_layers)
    numbered = cache is not None or automatic_axes(x)
    indices = jnp.arange(config.n_layers, dtype=jnp.int32) if numbered else None
    stacked = (layers, layer_keys, indices)
    carry = (x, cache)
    if isinstance(layers, tuple):
        whole = Group(0, config.types, 1)
        for number, kind in enumerate(config.types):
            mine = jax.tree.map(lambda leaf, number=number: leaf[number], (layer_keys, indices))
            carry, _ = one(kind, whole)(carry, (layers[number], *mine))
        return carry
    for group in layer_types.groups(config.types):
        bodies = [one(kind, group) for kind in group.pattern]
        if len(bodies) == 1:
            carry, _ = jax.lax.scan(bodies[0], carry, _part(stacked, group, config.n_layers))
            continue

        def pattern(carry: tuple, scanned: tuple, bodies: list = bodies) -> tuple[tuple, None]:
            for number, body in enumerate(bodies):
                carry, _ = body(carry, jax.tree.map(lambda leaf, number=number: leaf[number], scanned))
            return carry, None

        carry, _ = jax.lax.scan(pattern, carry, _part(stacked, group, config.n_layers))
    return carry


def _part(stacked: tuple, group: Group, n_layers: int) -> tuple:
    """A group's part of leaves [L, ...], as a scan takes it: [repeats, ...] or [repeats, pattern, ...]."""
    wide = (group.repeats, len(group.pattern))[: 1 if len(group.pattern) == 1 else 2]

    def cut(leaf: Array) -> Array:
        if group.layers < n_layers:
            leaf = leaf[group.first : group.first + group.layers]
        return leaf if len(wide) == 1 else leaf.reshape(*wide, *leaf.shape[1:])

    return jax.tree.map(cut, stacked)


def _remat(
    config: DecoderConfig, fn: Callable[_Arguments, _Result], alone: bool
) -> Callable[_Arguments, _Result]:
    """A layer that recomputes in the gradient what config.remat says.

    alone: whether it is the only one of its scan, which the compiler then takes apart; in a longer scan what
    is recomputed cannot be merged with what was computed before, and nothing has to keep them apart.
    """
    if config.remat == "none":
        return fn
    policy = {
        "full": None,
        "attention": jax.checkpoint_policies.save_only_these_names(*SAVED),
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[config.remat]
    return jax.checkpoint(fn, policy=policy, prevent_cse=alone)
