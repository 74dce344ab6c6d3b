"""The next token of every row: the likeliest one, or a random one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """How to draw; a pytree.

    Attributes:
        key: of the whole run.
        temperature: float32, above 0.
        top_p: float32, in (0, 1), or None for every token.
    """

    key: Key[Array, ""]
    temperature: Float[Array, ""] | np.float32
    top_p: Float[Array, ""] | np.float32 | None


def next_tokens(
    logits: Float[Array, "B V"], step: Int[Array, ""], sampling: Sampling | None
) -> Int[Array, "B"]:
    """The next token of each row.

    Row b at a step draws from the key folded with b and with the step: what a row draws depends on its own
    logits, its index and the step alone.

    Args:
        logits: of the next token.
        step: how many new tokens each row has so far.
        sampling: how to draw; None takes the largest logit (of equal ones the first).
    """
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / jnp.asarray(sampling.temperature).astype(logits.dtype)
    if sampling.top_p is not None:
        scaled = nucleus(scaled, jnp.asarray(sampling.top_p).astype(logits.dtype))
    rows = jnp.arange(len(logits), dtype=jnp.uint32)
    key_of = lambda row: jax.random.fold_in(jax.random.fold_in(sampling.key, row), step)
    draw = lambda row, x: jax.random.categorical(key_of(row), x)
    return jax.vmap(draw)(rows, scaled).astype(jnp.int32)


def nucleus(logits: Float[Array, "*rows V"], top_p: Float[Array, ""]) -> Float[Array, "*rows V"]:
    """Logits with -inf for all but the fewest likeliest tokens that reach a probability together.

    Tokens as likely as the last of them stay too (nucleus sampling, Holtzman et al. 2020).

    Args:
        logits: of the next token.
        top_p: the probability.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    smallest = jnp.take_along_axis(ordered, jnp.maximum(last, 0), axis=-1)
    return jnp.where(logits >= smallest, logits, -jnp.inf)
