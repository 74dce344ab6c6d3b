"""Dropout with cheap random bits: 16 bits per number, and every word of each hash is used.

`jax.random.bernoulli` hashes once per number and drops half of each hash; for a small model, such as
PosGen's, that was a third of a training step.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Key, UInt


def dropout(x: Float[Array, "B *rest"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "B *rest"]:
    """Zero each number of x with a probability, and scale the others up so that the mean stays.

    Args:
        x: axis 0 is the row of the batch.
        rate: the probability; the nearest multiple of 1/65,536 is used, and the scale that belongs to it.
        key: of the random numbers; without one x is returned as it is.
    """
    if not rate or key is None:
        return x
    threshold = kept_of_65536(rate)
    return jnp.where(bits16(key, x.shape) < threshold, x * jnp.asarray(65536 / threshold, x.dtype), 0)


def split(key: Key[Array, ""] | None, count: int) -> list[Key[Array, ""] | None]:
    """`count` keys made of one; without a key, as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def kept_of_65536(rate: float) -> int:
    """How many of the 65,536 values of 16 random bits keep a number."""
    return round((1 - rate) * 65536)


def bits16(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """Random 16-bit numbers, uint16 of the given shape.

    Axis 0 is the row of the batch. Each row has a key of its own, so that no row depends on the others. Each
    stretch along the last axis is hashed on its own, so that a mesh makes every part where it lies.
    """
    rows, *middle, last = shape
    words = 2 * -(-last // 4)
    start = words * jnp.arange(math.prod(middle), dtype=jnp.uint32).reshape(middle)

    def row(key: Key[Array, ""]) -> UInt[Array, "..."]:
        pair = jax.random.key_data(key)[:2]
        stretch = lambda first: threefry_2x32(pair, first + jnp.arange(words, dtype=jnp.uint32))
        for _ in middle:
            stretch = jax.vmap(stretch)
        return stretch(start)

    bits = jax.lax.bitcast_convert_type(jax.vmap(row)(jax.random.split(key, rows)), jnp.uint16)
    return bits.reshape(*shape[:-1], 2 * words)[..., :last]
