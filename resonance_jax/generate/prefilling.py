"""Prefill: prompts through the decoder at once, their keys and values into a cache. Pure and jittable."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from resonance_jax import rope
from resonance_jax.generate.cache import Cache, empty
from resonance_jax.model import DecoderConfig, hidden_states
from resonance_jax.model.decoder import Weights, logits
from resonance_jax.parallel.mesh import automatic_axes

TOKENS_AT_ONCE = 8192
"""Prompt tokens in one forward pass: enough to keep a device busy; memory does not grow with the batch."""


def prefill(
    config: DecoderConfig,
    params: Weights,
    tokens: Integer[Array | np.ndarray, "B T"],
    lengths: Integer[Array | np.ndarray, "B"],
    freqs: rope.Tables,
    capacity: int,
) -> tuple[Float[Array, "B V"], Cache]:
    """Run the prompts through the decoder and keep their keys and values in a cache.

    Without a mesh, about TOKENS_AT_ONCE go through the decoder at a time, in whole rows.

    Args:
        config, params: the decoder.
        tokens: the prompts, padded on the right with any token.
        lengths: tokens of each row, 1 … T.
        freqs: the table for everything that the cache will hold.
        capacity: tokens that each row of the cache has room for.

    Returns:
        The logits after each row's last token, in promote_types(float32, dtype), and the cache.

    Raises:
        ValueError: T is more than the capacity; and as `model.forward` raises it.
    """
    B, T = tokens.shape
    tokens, lengths = jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32)
    cache = empty(config, B, capacity, freqs)
    rows = B if math.prod(automatic_axes(tokens).values()) > 1 else _rows_at_once(B, T)
    if rows == B:
        return go_on(config, params, tokens, lengths, cache)
    cache.check(config, tokens, freqs)

    def some(
        stacks: tuple[Float[Array, "L B K S H"], Float[Array, "L B K S H"]], first: Int[Array, ""]
    ) -> tuple[tuple[Float[Array, "L B K S H"], Float[Array, "L B K S H"]], Float[Array, "rows V"]]:
        mine, long = (jax.lax.dynamic_slice_in_dim(x, first, rows) for x in (tokens, lengths))
        scores, part = prefill(config, params, mine, long, freqs, T)
        zero = jnp.zeros_like(first)
        put = lambda stack, new: jax.lax.dynamic_update_slice(stack, new, (zero, first, zero, zero, zero))
        return (put(stacks[0], part.keys), put(stacks[1], part.values)), scores

    # Where `rows` does not divide B the last part would reach beyond the last row. Slices are moved back to
    # fit, both where they read and where they write: some rows are computed twice, to the same result.
    first = rows * jnp.arange(-(-B // rows), dtype=jnp.int32)
    (keys, values), scores = jax.lax.scan(some, (cache.keys, cache.values), first)
    full = dataclasses.replace(cache, keys=keys, values=values, lengths=lengths, fresh=False)
    if B % rows:
        scores = jnp.concatenate([scores[:-1].reshape(-1, scores.shape[2]), scores[-1, -(B % rows) :]])
    return scores.reshape(B, -1), full


def _rows_at_once(B: int, T: int) -> int:
    """Rows of T tokens that go through the decoder together.

    As many as have no more than TOKENS_AT_ONCE, and then as few as make the same number of parts of B rows.
    """
    parts = -(-B // max(1, TOKENS_AT_ONCE // T))
    return -(-B // parts)


def go_on(
    config: DecoderConfig,
    params: Weights,
    tokens: Integer[Array | np.ndarray, "B T"],
    lengths: Integer[Array | np.ndarray, "B"],
    cache: Cache,
) -> tuple[Float[Array, "B V"], Cache]:
    """Run tokens through the decoder that follow what a cache holds.

    Args:
        config, params: the decoder.
        tokens: of every row, padded on the right with any token.
        lengths: tokens of each row, 1 … T.
        cache: what stands before them.

    Returns:
        The logits after each row's last token, and the cache with the tokens in it.
    """
    lengths = jnp.asarray(lengths, jnp.int32)
    after = cache.lengths + lengths
    x, cache = hidden_states(config, params, jnp.asarray(tokens), cache.freqs, cache=cache)
    last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
    return logits(config, params, last), dataclasses.replace(cache, lengths=after)


def bucket(length: int) -> int:
    """The length that a prompt is padded to, so that few programs are compiled.

    Buckets are the multiples of 64 up to 256, then four per doubling: at most a fifth of the positions is
    padding.
    """
    step = max(64, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step
