"""The cache: keys and values of the tokens so far, and the table that the keys were rotated under."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from resonance_jax import rope
from resonance_jax.model import DecoderConfig
from resonance_jax.model.cached_attention import cached_attention
from resonance_jax.model.parameters import real_dtype
from resonance_jax.model.sequence import attention
from resonance_jax.parallel.mesh import constrain

AXES = ("layers", "batch", "kv_heads", None, None)
"""Logical axes of the keys and of the values."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "lengths", "freqs"],
    meta_fields=["layout", "fresh"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, for as many tokens as each row holds; a pytree.

    keys:    [L, B, K, S, H], rotated under `freqs`; slot s is position s
    values:  [L, B, K, S, H]
    lengths: i32[B], tokens held by each row; what lies in later slots is never read
    freqs:   the table that the keys were rotated under: the only one that new tokens can attend under
    layout:  which dims make a pair (rope.rotate)
    fresh:   whether nothing is held yet, known when compiling: attention is then that of a plain forward
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array
    freqs: rope.Frequencies
    layout: str
    fresh: bool

    @property
    def capacity(self) -> int:
        """S, the tokens that a row has room for."""
        return self.keys.shape[3]

    def rotate_to(self, freqs: rope.Frequencies) -> "Cache":
        """The same cache with its keys as if they had been rotated under another table.

        For a conversation that outgrows the length its table was declared for. Each key is turned back by
        its exact phase under the old table and forward under the new one, attention factors included, in
        promote_types(float32, dtype): the keys of the first layer are those of a prefill under the new
        table, to that precision; keys stored in bfloat16 are rounded once more. Deeper layers' keys and
        values were computed from what earlier layers attended to under the old table, and stay so, just as
        in a cache that keeps keys unrotated (YaRN, Peng et al. 2023, section 3.3); only a new `prefill`
        computes them again. Raises ValueError when the table rotates more dims than a head has. Pure.
        """
        rotated, head = 2 * freqs.step.shape[0], self.keys.shape[-1]
        if rotated > head:
            raise ValueError(f"the encoding rotates {rotated} dims, but the cache's heads have {head}.")
        return dataclasses.replace(self, keys=_turned(self.keys, self.freqs, freqs, self.layout), freqs=freqs)

    def check(self, config: DecoderConfig, tokens: jax.Array, freqs: rope.Frequencies) -> None:
        """Raise ValueError unless it can take these tokens [B, T] under this table.

        Where tables or lengths are tracers their values cannot be checked: then the cache's own table is
        used, and a row that outgrows the cache gives NaN.
        """
        B, T = tokens.shape
        wanted = (config.n_layers, B, config.n_kv_heads, self.capacity, config.head_dim)
        if self.keys.shape != wanted or self.layout != config.rope_layout:
            raise ValueError(
                f"this cache is for [layers, rows, key heads, capacity, head size] {list(self.keys.shape)} "
                f"and {self.layout!r} pairs; the decoder and the tokens ask for {list(wanted)} and "
                f"{config.rope_layout!r}."
            )
        leaves = jax.tree.leaves((self.freqs, freqs))
        if not any(isinstance(x, jax.core.Tracer) for x in leaves) and not rope.same(self.freqs, freqs):
            raise ValueError(
                "the keys in this cache were rotated under another table; turn them with "
                "cache.rotate_to(freqs), or go on under cache.freqs."
            )
        held = 0 if isinstance(self.lengths, jax.core.Tracer) else int(self.lengths.max())
        if held + T > self.capacity:
            raise ValueError(
                f"a row holds {held} tokens and would take {T} more, but the cache has room for "
                f"{self.capacity}; make it with a larger capacity."
            )

    def positions(self, count: int) -> jax.Array:
        """Of the next `count` tokens: i32[count] when nothing is held yet, or i32[B, count]."""
        after = jnp.arange(count, dtype=jnp.int32)
        return after if self.fresh else self.lengths[:, None] + after[None]

    def attend(
        self, layer: jax.Array, q, k, v, *, window: int | None, scale: float | None, kernel: str
    ) -> tuple[jax.Array, "Cache"]:
        """Write the new keys and values of one layer, then attend over all it holds.

        q [B, T, N, H], k and v [B, T, K, H] -> [B, T, N, H] and the cache with them in it. NaN for rows that
        have no room for them. kernel: of the attention when nothing was held yet.
        """
        if self.fresh:
            out = attention(q, k, v, window=window, scale=scale, kernel=kernel)
            return out, self._written(layer, k, v)
        cache = self._written(layer, k, v)
        scale = q.shape[3] ** -0.5 if scale is None else scale
        options = dict(window=window, scale=scale)
        out = cached_attention(q, cache.keys, cache.values, layer, self.lengths, **options)
        room = (self.lengths + q.shape[1] <= self.capacity)[:, None, None, None]
        return jnp.where(room, out, jnp.nan), cache

    def advanced(self, count: int) -> "Cache":
        """The cache once every layer has taken `count` tokens more in every row."""
        return dataclasses.replace(self, lengths=self.lengths + count, fresh=False)

    def _written(self, layer: jax.Array, k, v) -> "Cache":
        """With k and v [B, T, K, H] in the slots of one layer that come next in each row."""
        B, T = k.shape[:2]

        def write(stack, new):
            new = new.astype(stack.dtype)
            if self.fresh:
                first = (layer, *[jnp.zeros_like(layer)] * 4)
                stack = jax.lax.dynamic_update_slice(stack, new.swapaxes(1, 2)[None], first)
            else:
                rows, slots = jnp.arange(B, dtype=jnp.int32)[:, None], self.positions(T)
                stack = stack.at[layer, rows, :, slots].set(new, mode="drop", unique_indices=True)
            return constrain(stack, AXES)

        return dataclasses.replace(self, keys=write(self.keys, k), values=write(self.values, v))


@partial(jax.jit, static_argnames="layout")
def _turned(stack: jax.Array, before: rope.Frequencies, after: rope.Frequencies, layout: str) -> jax.Array:
    """Keys [L, B, K, S, H] rotated under one table, as if under another."""
    wide = jnp.promote_types(jnp.float32, stack.dtype)
    positions = jnp.arange(stack.shape[3], dtype=jnp.int32)
    factor = jnp.asarray(before.attention_factor).astype(wide)
    back_cos, back_sin = (x / factor**2 for x in rope.cos_sin(before, positions, wide))
    cos, sin = rope.cos_sin(after, positions, wide)

    def turn(keys):  # one layer's
        keys = keys.swapaxes(1, 2).astype(wide)  # time before heads
        keys = rope.rotate(keys, back_cos, -back_sin, layout)
        return rope.rotate(keys, cos, sin, layout).swapaxes(1, 2).astype(stack.dtype)

    return jax.lax.map(turn, stack)


def empty(
    config: DecoderConfig, batch: int, capacity: int, freqs: rope.Frequencies, dtype: str | None = None
) -> Cache:
    """A cache of `batch` rows that holds nothing and has room for `capacity` tokens a row.

    dtype: of keys and values, by default the config's. Pure. Raises ValueError for sizes below 1.
    """
    if batch < 1 or capacity < 1:
        raise ValueError(f"a cache has at least 1 row and room for 1 token, got {batch} and {capacity}.")
    shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
    stack = lambda: constrain(jnp.zeros(shape, real_dtype(dtype or config.dtype)), AXES)
    return Cache(stack(), stack(), jnp.zeros(batch, jnp.int32), freqs, config.rope_layout, fresh=True)
