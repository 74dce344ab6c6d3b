"""Prefill and decoding, pure and jittable, and `generate`, which runs them over prompts of any lengths."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resonance_jax import rope
from resonance_jax.generate.cache import Cache, empty
from resonance_jax.generate.sampling import Sampling, next_tokens
from resonance_jax.generate.stopping import Row
from resonance_jax.model import Decoder, DecoderConfig, hidden_states
from resonance_jax.model.decoder import Params, logits
from resonance_jax.parallel.mesh import automatic_axes, sharding

TOKENS_AT_ONCE = 8192
"""Of the prompts, in one forward: enough to keep a device busy, and memory does not grow with the batch."""
CHUNK = 64
"""Tokens a row between two looks by the host."""
CHUNK_WITH_STOPS = 16
"""The same when it looks for stop strings: what is generated beyond one is thrown away."""


def prefill(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    freqs: rope.Frequencies,
    capacity: int,
) -> tuple[jax.Array, Cache]:
    """The prompts at once: logits [B, V] after each row's last token, and a cache of `capacity`.

    tokens: i32[B, T], padded on the right with any token. lengths: i32[B], tokens of each row, 1 … T.
    freqs: the table for everything that the cache will hold. Logits are in promote_types(float32, dtype).
    Without a mesh, TOKENS_AT_ONCE go through the decoder at a time, in whole rows. Raises ValueError when T
    is more than the capacity, and as `model.forward` does.
    """
    B, T = tokens.shape
    tokens, lengths = jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32)
    cache = empty(config, B, capacity, freqs)
    rows = B if math.prod(automatic_axes(tokens).values()) > 1 else _rows_at_once(B, T)
    if rows == B:
        x, cache = hidden_states(config, params, tokens, freqs, cache=cache)
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
        return logits(config, params, last), dataclasses.replace(cache, lengths=lengths)

    cache.check(config, tokens, freqs)

    def some(stacks, first):
        mine = (jax.lax.dynamic_slice_in_dim(x, first, rows) for x in (tokens, lengths))
        scores, part = prefill(config, params, *mine, freqs, T)
        zero = jnp.zeros_like(first)
        put = lambda stack, new: jax.lax.dynamic_update_slice(stack, new, (zero, first, zero, zero, zero))
        return (put(stacks[0], part.keys), put(stacks[1], part.values)), scores

    first = rows * jnp.arange(B // rows, dtype=jnp.int32)
    (keys, values), scores = jax.lax.scan(some, (cache.keys, cache.values), first)
    full = dataclasses.replace(cache, keys=keys, values=values, lengths=lengths, fresh=False)
    return scores.reshape(B, -1), full


def _rows_at_once(B: int, T: int) -> int:
    """The most rows of T tokens, a divisor of B, that have no more than TOKENS_AT_ONCE."""
    return max(
        rows for rows in range(1, B + 1) if B % rows == 0 and (rows == 1 or rows * T <= TOKENS_AT_ONCE)
    )


def decode_step(
    config: DecoderConfig, params: Params, cache: Cache, tokens: jax.Array
) -> tuple[jax.Array, Cache]:
    """One token a row, i32[B] -> logits [B, V] of the next one, and the cache with this one in it.

    Under the cache's own table. A row that the cache has no room for gives NaN. A jit that donates the cache
    writes it in place.
    """
    x, cache = hidden_states(config, params, tokens[:, None], cache.freqs, cache=cache)
    return logits(config, params, x[:, 0]), cache


def bucket(length: int) -> int:
    """The smallest length at least as long that programs are compiled for: multiples of 64 up to 256, then
    four to every doubling, so that at most a fifth of the positions is padding."""
    step = max(64, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


@dataclasses.dataclass(frozen=True)
class Generation:
    """What followed each prompt.

    tokens:  i32[n] a row, all that was generated, the EOS or the tokens of a stop string included
    reasons: why each row ended: "eos", "stop" (a stop string) or "length" (max_new_tokens)
    texts:   the tokens before the EOS as text, cut before the stop string; None without `decode`
    """

    tokens: tuple[np.ndarray, ...]
    reasons: tuple[str, ...]
    texts: tuple[str, ...] | None


def generate(
    lm: Decoder,
    prompts: Sequence[Any],
    freqs: rope.Frequencies,
    *,
    max_new_tokens: int,
    stop: str | Sequence[str] = (),
    eos_id: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    decode: Callable[[list[int]], str] | None = None,
    length: int | None = None,
) -> Generation:
    """Continue each prompt until an EOS, a stop string or max_new_tokens; one batch, compiled by bucket.

    A row depends on its own prompt alone; when sampling also on (key, its index, the number of the token).

    Args:
        prompts: B arrays of token ids, of any lengths (they are padded to a common `bucket`).
        freqs: the table of the whole sequence, prompt and new tokens: for a dynamic method that of the
            longest sequence to come.
        stop: strings that end a row as soon as its new text contains one; they need `decode`.
        eos_id: the token, or the tokens, that end a row.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and one is drawn.
        top_p: draw from the fewest likeliest tokens that have this probability together.
        key: of the random numbers, for a temperature above 0.
        decode: new token ids to text, such as `tokenizer.decode`.
        length: the length that `freqs` was declared for, if it has one; a longer sequence is refused.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, an option out of its range, stop strings
            without `decode`, sampling without a key, or more tokens than `length`.
    """
    rows = [_prompt(i, prompt, lm.config.vocab_size) for i, prompt in enumerate(prompts)]
    stops = [stop] if isinstance(stop, str) else list(stop)
    eos = [eos_id] if isinstance(eos_id, int | np.integer) else list(eos_id or ())
    _check(rows, max_new_tokens, stops, eos, temperature, top_p, key, decode, length, lm.config.vocab_size)
    sampling = None
    if temperature > 0:
        nucleus = None if top_p == 1 else np.float32(top_p)
        sampling = Sampling(key, np.float32(temperature), nucleus)
    tokens, lengths, capacity = _padded(rows, max_new_tokens)
    eos = np.asarray(eos, np.int32)
    if lm.mesh is not None:
        tokens = jax.device_put(tokens, sharding(lm.mesh, ("batch", None), tokens.shape))
    params = lm.params
    ends = [Row(eos, stops, decode, max_new_tokens) for _ in rows]
    last, cache = _start(lm.config, params, tokens, lengths, freqs, capacity, sampling)
    new, made = np.asarray(last)[:, None], 1
    while True:
        for end, row in zip(ends, new, strict=True):
            end.take(row)
        done = np.array([end.reason is not None for end in ends])
        if done.all():
            break
        steps = min(CHUNK_WITH_STOPS if stops else CHUNK, max_new_tokens - made)
        last, cache, new, count = _continue(lm.config, params, cache, last, done, eos, made, steps, sampling)
        new = np.asarray(new)[:, : int(count)]
        made += new.shape[1]
    return Generation(
        tokens=tuple(np.asarray(end.tokens, np.int32) for end in ends),
        reasons=tuple(end.reason for end in ends),
        texts=None if decode is None else tuple(end.text() for end in ends),
    )


@partial(jax.jit, static_argnames=("config", "capacity"))
def _start(config, params, tokens, lengths, freqs, capacity, sampling):
    """Prefill and the first new token: i32[B] and the cache."""
    scores, cache = prefill(config, params, tokens, lengths, freqs, capacity)
    return next_tokens(scores, jnp.int32(0), sampling), cache


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _continue(config, params, cache, last, done, eos, made, steps, sampling):
    """Up to `steps` tokens after `last`, fewer when every row is done: the last ones, the cache, all of them
    i32[B, CHUNK], and how many."""

    def step(state):
        i, last, cache, done, new = state
        scores, cache = decode_step(config, params, cache, last)
        last = next_tokens(scores, made + i, sampling)
        done = done | (last[:, None] == eos[None]).any(axis=1)
        return i + 1, last, cache, done, new.at[:, i].set(last)

    state = jnp.int32(0), last, cache, done, jnp.zeros((len(last), CHUNK), jnp.int32)
    count, last, cache, _, new = jax.lax.while_loop(lambda s: (s[0] < steps) & ~s[3].all(), step, state)
    return last, cache, new, count


def _prompt(index: int, prompt: Any, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(prompt)
    if tokens.ndim != 1 or not len(tokens) or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"prompt {index} must be one or more token ids in a row, got {tokens.dtype}{list(tokens.shape)}."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"prompt {index} has token {tokens.max() if tokens.max() >= vocab_size else tokens.min()}, "
            f"outside the vocabulary 0 … {vocab_size - 1}; is this the model's tokenizer?"
        )
    return tokens.astype(np.int32)


def _check(rows, max_new_tokens, stops, eos, temperature, top_p, key, decode, length, vocab_size) -> None:
    if not rows:
        raise ValueError("there are no prompts; expected at least one.")
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}.")
    if not all(isinstance(text, str) and text for text in stops):
        raise ValueError(f"stop must be strings of at least one character, got {stops!r}.")
    if stops and decode is None:
        raise ValueError("stop strings are looked for in text; give decode=, such as tokenizer.decode.")
    if not all(0 <= token < vocab_size for token in eos):
        raise ValueError(f"eos_id must be in the vocabulary 0 … {vocab_size - 1}, got {eos}.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (the likeliest token) or above, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}.")
    if temperature > 0 and key is None:
        raise ValueError(
            "sampling (a temperature above 0) needs random numbers; give key=jax.random.key(...)."
        )
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    total = len(rows[longest]) + max_new_tokens
    if length is not None and total > length:
        raise ValueError(
            f"prompt {longest} of {len(rows[longest])} tokens and {max_new_tokens} new ones make {total}, "
            f"more than the length {length} that the encoding was declared for; shorten it, or declare more."
        )


def _padded(rows: list[np.ndarray], max_new_tokens: int) -> tuple[np.ndarray, np.ndarray, int]:
    """i32[B, T] padded on the right to a bucket, the lengths i32[B], and the cache's capacity."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), bucket(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, rows, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths, bucket(tokens.shape[1] + max_new_tokens)  # one capacity a bucket
