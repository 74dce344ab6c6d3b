"""The next token of every row: the likeliest, or one drawn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How to draw; a pytree. key: of the whole run; temperature: f32[] above 0; top_p: f32[] in (0, 1), or
    None for every token."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array | None


def next_tokens(logits: jax.Array, step: jax.Array, sampling: Sampling | None) -> jax.Array:
    """[B, V] -> i32[B]. Without sampling the largest logit (of equals the first).

    Row b at a step draws from the key folded with b and with the step: what a row draws depends on its own
    logits, its index and the step alone. step: i32[], new tokens so far.
    """
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / sampling.temperature.astype(logits.dtype)
    if sampling.top_p is not None:
        scaled = nucleus(scaled, sampling.top_p.astype(logits.dtype))
    rows = jnp.arange(len(logits), dtype=jnp.uint32)
    key_of = lambda row: jax.random.fold_in(jax.random.fold_in(sampling.key, row), step)
    draw = lambda row, x: jax.random.categorical(key_of(row), x)
    return jax.vmap(draw)(rows, scaled).astype(jnp.int32)


def nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """[..., V] with -inf for all but the fewest likeliest tokens whose probabilities reach top_p together
    (Holtzman et al. 2020). Tokens as likely as the last of them stay too."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    smallest = jnp.take_along_axis(ordered, jnp.maximum(last, 0), axis=-1)
    return jnp.where(logits >= smallest, logits, -jnp.inf)
