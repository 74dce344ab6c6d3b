"""Dropout whose random bits are cheap: 16 a number, and every word of each hash is used.

`jax.random.bernoulli` hashes once a number and drops half of each hash; where the model is small, as
PosGen's, that was a third of a training step.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x [B, ...] with each number zeroed with probability `rate`, the others scaled up.

    The probability is the nearest 65,536th to `rate`, and the scale its exact counterpart.
    Without a key nothing happens.
    """
    if not rate or key is None:
        return x
    threshold = kept_of_65536(rate)
    return jnp.where(bits16(key, x.shape) < threshold, x * jnp.asarray(65536 / threshold, x.dtype), 0)


def kept_of_65536(rate: float) -> int:
    """How many of 65,536 values keep a number."""
    return round((1 - rate) * 65536)


def bits16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random u16[shape], B first: a key for each row of the batch, so that no row depends on the others.

    Each stretch along the last axis is hashed on its own: what a mesh cuts is made where it lies.
    """
    rows, *middle, last = shape
    words = 2 * -(-last // 4)
    start = words * jnp.arange(math.prod(middle), dtype=jnp.uint32).reshape(middle)

    def row(key):
        pair = jax.random.key_data(key)[:2]
        stretch = lambda first: threefry_2x32(pair, first + jnp.arange(words, dtype=jnp.uint32))
        for _ in middle:
            stretch = jax.vmap(stretch)
        return stretch(start)

    bits = jax.lax.bitcast_convert_type(jax.vmap(row)(jax.random.split(key, rows)), jnp.uint16)
    return bits.reshape(*shape[:-1], 2 * words)[..., :last]
