"""The cache: keys and values of the tokens so far, and the table that the keys were rotated under."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Integer

from resonance_jax import rope
from resonance_jax.model import DecoderConfig
from resonance_jax.model.cached_attention import Prefix, cached_attention
from resonance_jax.model.layer_types import LayerType, by_name, tables
from resonance_jax.model.parameters import real_dtype
from resonance_jax.model.sequence import attention
from resonance_jax.parallel.mesh import constrain

AXES = ("layers", "batch", "kv_heads", None, None)
"""Logical axes of the keys and of the values."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "lengths", "freqs", "prefix"],
    meta_fields=["layout", "types", "fresh"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, for as many tokens as each row holds; a pytree.

    Attributes:
        keys: rotated under `freqs`; slot s is position s, or s after the prefix.
        values: in the same slots.
        lengths: int32, tokens held by each row; what lies in later slots is never read.
        freqs: the table that the keys were rotated under, or the tables by layer type; new tokens can attend
            under no other.
        layout: which dims make a pair (rope.rotate).
        types: of every layer: which table its keys are rotated under, if any.
        fresh: whether nothing is held yet, known when compiling: attention is then that of a plain forward.
        prefix: the tokens that every row begins with, held once; None where there are none.
    """

    __no_type_check__: ClassVar[bool] = True  # jax also builds it of what are no arrays, such as shapes

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    lengths: Int[Array, "B"]
    freqs: rope.Tables
    layout: str
    types: tuple[LayerType, ...]
    fresh: bool
    prefix: Prefix | None = None

    def branched(self, rows: int, capacity: int) -> "Cache":
        """A cache of several rows that all begin with what this one holds, without a copy of it. Pure.

        Args:
            rows: how many rows.
            capacity: how many tokens each row has room for after what they share.

        Raises:
            ValueError: this cache has several rows, or a prefix itself; fewer than one row, or no room.
        """
        if self.keys.shape[1] != 1 or self.prefix is not None or rows < 1 or capacity < 1:
            raise ValueError(
                f"rows branch from a cache of one row, to 1 row and room for 1 token or more; got "
                f"{self.keys.shape[1]} rows, and asked for {rows} with room for {capacity}."
            )
        shape = (self.keys.shape[0], rows, self.keys.shape[2], capacity, self.keys.shape[4])
        return dataclasses.replace(
            self,
            keys=constrain(jnp.zeros(shape, self.keys.dtype), AXES),
            values=constrain(jnp.zeros(shape, self.values.dtype), AXES),
            lengths=jnp.zeros(rows, jnp.int32),
            fresh=False,
            prefix=Prefix(self.keys, self.values, self.lengths[0]),
        )

    @property
    def shared(self) -> Int[Array, ""] | int:
        """How many tokens of the prefix stand before each row's own."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def capacity(self) -> int:
        """S, the tokens that a row has room for."""
        return self.keys.shape[3]

    def rotate_to(self, freqs: rope.Tables) -> "Cache":
        """The same cache with its keys as if they had been rotated under another table.

        For a conversation that outgrows the length its table was declared for. Each key is turned back by
        its exact phase under the old table and forward under the new one, attention factors included, in
        promote_types(float32, dtype): the keys of the first layer are those of a prefill under the new
        table, to that precision; keys stored in bfloat16 are rounded once more. The keys and values of deeper
        layers were computed from what earlier layers attended to under the old table. They keep that, as in
        a cache of unrotated keys (YaRN, Peng et al. 2023, section 3.3); only a new `prefill` computes them
        again. Keys of layers without RoPE stay. Pure. Raises ValueError when a table rotates more dims than a
        head has, and for tables of other layer types.
        """
        after = tables(self.types, self.keys.shape[-1], freqs)
        before = by_name(self.types, self.freqs)

        def turned(keys: Float[Array, "L B K S H"], first: Int[Array, ""] | int) -> Float[Array, "L B K S H"]:
            if len(after) == 1 and all(kind.rope for kind in self.types):
                ((name, table),) = after.items()
                return _turned(keys, before[name], table, first, self.layout)
            for name, table in after.items():
                mine = np.array([number for number, kind in enumerate(self.types) if kind.name == name])
                keys = keys.at[mine].set(_turned(keys[mine], before[name], table, first, self.layout))
            return keys

        prefix = None if self.prefix is None else self.prefix._replace(keys=turned(self.prefix.keys, 0))
        return dataclasses.replace(self, keys=turned(self.keys, self.shared), freqs=freqs, prefix=prefix)

    def check(
        self, config: DecoderConfig, tokens: Integer[Array | np.ndarray, "B T"], freqs: rope.Tables
    ) -> None:
        """Raise ValueError unless the cache can take these tokens under this table.

        Tracers have no values to check. Under jit the cache's own table is used, and a row that outgrows the
        cache gives NaN.

        Args:
            config: the decoder.
            tokens: that come next in each row.
            freqs: the table that they are meant to attend under.
        """
        B, T = tokens.shape
        wanted = (config.n_layers, B, config.n_kv_heads, self.capacity, config.head_dim)
        if self.keys.shape != wanted or self.layout != config.rope_layout:
            raise ValueError(
                f"this cache is for [layers, rows, key heads, capacity, head size] {list(self.keys.shape)} "
                f"and {self.layout!r} pairs; the decoder and the tokens ask for {list(wanted)} and "
                f"{config.rope_layout!r}."
            )
        if self._tables(self.types) != self._tables(config.types):
            raise ValueError(
                "this cache is for other layer types than the decoder's; make it with its config."
            )
        leaves = jax.tree.leaves((self.freqs, freqs))
        if not any(isinstance(x, Tracer) for x in leaves) and not rope.same(self.freqs, freqs):
            raise ValueError(
                "the keys in this cache were rotated under another table; turn them with "
                "cache.rotate_to(freqs), or go on under cache.freqs."
            )
        held = 0 if isinstance(self.lengths, Tracer) else int(self.lengths.max())
        if held + T > self.capacity:
            raise ValueError(
                f"a row holds {held} tokens and would take {T} more, but the cache has room for "
                f"{self.capacity}; make it with a larger capacity."
            )

    def _tables(self, types: tuple[LayerType, ...]) -> list[str | None]:
        """Which table the keys of each layer are rotated under: its name, "" for the only one, or None."""
        named = isinstance(self.freqs, dict)
        return [(kind.name if named else "") if kind.rope else None for kind in types]

    def positions(self, count: int) -> Int[Array, "*rows {count}"]:
        """Positions of the next `count` tokens: [count] when nothing is held yet, or [B, count]."""
        after = jnp.arange(count, dtype=jnp.int32)
        return after if self.fresh else self.shared + self.lengths[:, None] + after[None]

    def attend(
        self,
        layer: Int[Array, ""],
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        window: int | None,
        scale: float | None,
        kernel: str,
    ) -> tuple[Float[Array, "B T N H"], "Cache"]:
        """Write the new keys and values of one layer, then attend over all it holds.

        Args:
            layer: which layer.
            q, k, v: of the new tokens.
            window, scale: as for model.attention.
            kernel: as for model.attention, used when nothing was held yet.

        Returns:
            What each query attends to, NaN in rows that have no room for the new tokens, and the cache with
            them in it.
        """
        if self.fresh:
            out = attention(q, k, v, window=window, scale=scale, kernel=kernel)
            return out, self._written(layer, k, v)
        cache = self._written(layer, k, v)
        factor: float = q.shape[3] ** -0.5 if scale is None else scale
        held = (cache.keys, cache.values, layer, self.lengths)
        out = cached_attention(q, *held, window=window, scale=factor, prefix=self.prefix)
        room = (self.lengths + q.shape[1] <= self.capacity)[:, None, None, None]
        return jnp.where(room, out, jnp.nan), cache

    def advanced(self, count: int) -> "Cache":
        """The cache once every layer has taken `count` more tokens in every row."""
        return dataclasses.replace(self, lengths=self.lengths + count, fresh=False)

    def _written(
        self, layer: Int[Array, ""], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> "Cache":
        """The cache with k and v in the slots of one layer that come next in each row."""
        B, T = k.shape[:2]

        def write(
            stack: Float[Array, "L B K S H"], new: Float[Array, "B T K H"]
        ) -> Float[Array, "L B K S H"]:
            new = new.astype(stack.dtype)
            if self.fresh:
                first = (layer, *[jnp.zeros_like(layer)] * 4)
                stack = jax.lax.dynamic_update_slice(stack, new.swapaxes(1, 2)[None], first)
            else:
                after = jnp.arange(T, dtype=jnp.int32)[None]
                rows, slots = jnp.arange(B, dtype=jnp.int32)[:, None], self.lengths[:, None] + after
                stack = stack.at[layer, rows, :, slots].set(new, mode="drop", unique_indices=True)
            return constrain(stack, AXES)

        return dataclasses.replace(self, keys=write(self.keys, k), values=write(self.values, v))


@partial(jax.jit, static_argnames="layout")
def _turned(
    stack: Float[Array, "L B K S H"],
    before: rope.Frequencies,
    after: rope.Frequencies,
    first: Int[ArrayLike, ""],
    layout: str,
) -> Float[Array, "L B K S H"]:
    """Keys that were rotated under one table, as if they had been rotated under another; slot 0 stands at
    position `first`."""
    wide = jnp.promote_types(jnp.float32, stack.dtype)
    positions = first + jnp.arange(stack.shape[3], dtype=jnp.int32)
    factor = jnp.asarray(before.attention_factor).astype(wide)
    back_cos, back_sin = (x / factor**2 for x in rope.cos_sin(before, positions, wide))
    cos, sin = rope.cos_sin(after, positions, wide)

    def turn(keys: Float[Array, "B K S H"]) -> Float[Array, "B K S H"]:  # one layer's
        keys = keys.swapaxes(1, 2).astype(wide)  # time before heads
        keys = rope.rotate(keys, back_cos, -back_sin, layout)
        return rope.rotate(keys, cos, sin, layout).swapaxes(1, 2).astype(stack.dtype)

    return jax.lax.map(turn, stack)


def empty(
    config: DecoderConfig, batch: int, capacity: int, freqs: rope.Tables, dtype: str | None = None
) -> Cache:
    """A cache that holds nothing yet. Pure.

    Args:
        config: the decoder that it is for.
        batch: how many rows it has.
        capacity: how many tokens each row has room for.
        freqs: the table that its keys will be rotated under.
        dtype: of keys and values, by default the config's.

    Raises:
        ValueError: fewer than one row, or room for fewer than one token.
    """
    if batch < 1 or capacity < 1:
        raise ValueError(f"a cache has at least 1 row and room for 1 token, got {batch} and {capacity}.")
    shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
    stack = lambda: constrain(jnp.zeros(shape, real_dtype(dtype or config.dtype)), AXES)
    return Cache(
        stack(), stack(), jnp.zeros(batch, jnp.int32), freqs, config.rope_layout, config.types, fresh=True
    )
