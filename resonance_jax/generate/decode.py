"""Decoding, pure and jittable, and `generate`, which runs it and prefill over prompts of any lengths."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from resonance_jax import rope
from resonance_jax.generate.cache import Cache
from resonance_jax.generate.decoding_weights import for_decoding
from resonance_jax.generate.prefilling import bucket, go_on, prefill
from resonance_jax.generate.sampling import Sampling, next_tokens
from resonance_jax.generate.shared_prefix import SharedPrefix, share
from resonance_jax.generate.stopping import Reason, Row
from resonance_jax.model import Decoder, DecoderConfig, hidden_states
from resonance_jax.model.cached_attention import Prefix
from resonance_jax.model.decoder import Weights, logits
from resonance_jax.parallel.gather import gathered
from resonance_jax.parallel.mesh import placed, sharding

CHUNK = 64
"""Tokens per row that the device makes before the host looks at them."""
CHUNK_WITH_STOPS = 16
"""The same when the host looks for stop strings: tokens beyond one are thrown away."""

Prompt: TypeAlias = Sequence[int] | Integer[Array | np.ndarray, "_"]
"""Token ids."""


def decode_step(
    config: DecoderConfig, params: Weights, cache: Cache, tokens: Integer[Array, "B"]
) -> tuple[Float[Array, "B V"], Cache]:
    """Run one token per row through the decoder, under the cache's own table.

    A row that the cache has no room for gives NaN. A jit that donates the cache writes it in place.

    Args:
        config, params: the decoder.
        cache: the tokens before these.
        tokens: one per row.

    Returns:
        The logits of the next token, and the cache with this one in it.
    """
    x, cache = hidden_states(config, params, tokens[:, None], cache.freqs, cache=cache)
    return logits(config, params, x[:, 0]), cache


@dataclasses.dataclass(frozen=True)
class Generation:
    """What followed each prompt.

    Attributes:
        tokens: int32, of each row all that was generated, the EOS or the tokens of a stop string included.
        reasons: why each row ended: "eos", "stop" (a stop string) or "length" (max_new_tokens).
        texts: of each row the tokens before the EOS as text, cut before the stop string; None without
            `decode`.
    """

    tokens: tuple[Int[np.ndarray, "_"], ...]
    reasons: tuple[Reason, ...]
    texts: tuple[str, ...] | None


def generate(
    lm: Decoder,
    prompts: Sequence[Prompt],
    freqs: rope.Tables,
    *,
    max_new_tokens: int,
    stop: str | Sequence[str] = (),
    eos_id: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: Key[Array, ""] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    length: int | None = None,
    shared: SharedPrefix | None = None,
) -> Generation:
    """Continue each prompt until an EOS, a stop string or max_new_tokens.

    The prompts are one batch, and programs are compiled per `bucket`. What a row generates depends on its own
    prompt alone; when sampling also on the key, its index and the number of the token. Tokens that all
    prompts begin with go through the decoder once and are held once (generate.share); sums are then added up
    in another order, so that a token may differ where two are equally likely to float32's precision. On a
    mesh that spans processes each of them gives the same prompts, and has the whole result.

    Args:
        lm: the decoder.
        prompts: token ids, of any lengths (they are padded to a common `bucket`).
        freqs: the table of the whole sequence, prompt and new tokens; for a dynamic method the table of the
            longest sequence to come.
        max_new_tokens: the most tokens that a row gets.
        stop: strings that end a row as soon as its new text contains one; they need `decode`.
        eos_id: the token, or the tokens, that end a row.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and one is drawn.
        top_p: draw from the fewest likeliest tokens that have this probability together.
        key: of the random numbers, for a temperature above 0.
        decode: new token ids to text, such as `tokenizer.decode`.
        length: the length that `freqs` was declared for, if it has one; a longer sequence is refused.
        shared: of `share`, made of these prompts and others under this table, to continue several batches
            from one prefix; by default that of these prompts.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, an option out of its range, stop strings
            without `decode`, sampling without a key, more tokens than `length`, or a shared prefix that is
            not of these prompts or was made under another table.
    """
    rows = [_prompt(i, prompt, lm.config.vocab_size) for i, prompt in enumerate(prompts)]
    stops = [stop] if isinstance(stop, str) else list(stop)
    ids = [eos_id] if isinstance(eos_id, int | np.integer) else list(eos_id or ())
    _check(rows, max_new_tokens, stops, ids, temperature, top_p, key, decode, length, lm.config.vocab_size)
    sampling = None
    if temperature > 0 and key is not None:
        nucleus = None if top_p == 1 else np.float32(top_p)
        sampling = Sampling(key, np.float32(temperature), nucleus)
    shared = share(lm, rows, freqs) if shared is None else shared
    if shared is not None:
        if not rope.same(shared.cache.freqs, freqs):
            raise ValueError("the shared prefix was made under another table; make it with these freqs.")
        rows = [shared.rest(i, row) for i, row in enumerate(rows)]
    tokens, lengths, capacity = _padded(rows, max_new_tokens)
    eos = np.asarray(ids, np.int32)
    if lm.mesh is not None:
        tokens = placed(tokens, sharding(lm.mesh, ("batch", None), tokens.shape))
    params = lm.params
    ends = [Row(eos, stops, decode, max_new_tokens) for _ in rows]
    before = None if shared is None else shared.cache
    last, cache = _start(lm.config, params, tokens, lengths, freqs, before, capacity, sampling)
    cache, prefix = dataclasses.replace(cache, prefix=None), cache.prefix
    new, made = gathered(last)[:, None], 1
    while True:
        for end, row in zip(ends, new, strict=True):
            end.take(row)
        done = np.array([end.reason is not None for end in ends])
        if done.all():
            break
        steps = min(CHUNK_WITH_STOPS if stops else CHUNK, max_new_tokens - made)
        state = (cache, prefix, last, done, eos, made, steps, sampling)
        last, cache, new, count = _continue(lm.config, params, *state)
        new = gathered(new)[:, : int(gathered(count))]
        made += new.shape[1]
    return Generation(
        tokens=tuple(np.asarray(end.tokens, np.int32) for end in ends),
        reasons=tuple(end.reason for end in ends if end.reason is not None),
        texts=None if decode is None else tuple(end.text() for end in ends),
    )


@partial(jax.jit, static_argnames=("config", "capacity"))
def _start(
    config: DecoderConfig,
    params: Weights,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    freqs: rope.Tables,
    before: Cache | None,
    capacity: int,
    sampling: Sampling | None,
) -> tuple[Int[Array, "B"], Cache]:
    """Prefill: the first new token of each row, and the cache.

    before: a cache of one row, which holds what all rows begin with.
    """
    if before is None:
        scores, cache = prefill(config, params, tokens, lengths, freqs, capacity)
    else:
        scores, cache = go_on(config, params, tokens, lengths, before.branched(len(tokens), capacity))
    return next_tokens(scores, jnp.int32(0), sampling), cache


_State = tuple[Int[Array, ""], Int[Array, "B"], Cache, Bool[Array, "B"], Int[Array, "B chunk"]]
"""How many tokens there are, the last ones, the cache, which rows have ended, and the tokens."""


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _continue(
    config: DecoderConfig,
    params: Weights,
    cache: Cache,
    prefix: Prefix | None,
    last: Int[Array, "B"],
    done: Bool[Array, "B"],
    eos: Int[Array, "ends"],
    made: Int[Array, ""],
    steps: Int[Array, ""],
    sampling: Sampling | None,
) -> tuple[Int[Array, "B"], Cache, Int[Array, "B chunk"], Int[Array, ""]]:
    """Generate a few tokens more in every row.

    Args:
        config, params, sampling: as for `_start`.
        cache: without the last tokens; given up.
        prefix: what stands before it in every row, which stays.
        last: the last token of each row.
        done: which rows have ended; when all have, no more is generated.
        eos: tokens that end a row.
        made: how many new tokens each row has.
        steps: how many to generate, at most CHUNK.

    Returns:
        The last tokens, the cache, the new tokens in the first columns, and how many columns these are.
    """

    params = for_decoding(config, params, last)

    def step(state: _State) -> _State:
        i, last, cache, done, new = state
        scores, cache = decode_step(config, params, dataclasses.replace(cache, prefix=prefix), last)
        cache = dataclasses.replace(cache, prefix=None)
        last = next_tokens(scores, made + i, sampling)
        done = done | (last[:, None] == eos[None]).any(axis=1)
        return i + 1, last, cache, done, new.at[:, i].set(last)

    state = jnp.int32(0), last, cache, done, jnp.zeros((len(last), CHUNK), jnp.int32)
    count, last, cache, _, new = jax.lax.while_loop(lambda s: (s[0] < steps) & ~s[3].all(), step, state)
    return last, cache, new, count


def _prompt(index: int, prompt: Prompt, vocab_size: int) -> Int[np.ndarray, "_"]:
    """A prompt as an array. Raises ValueError for what is not one or more tokens of the vocabulary."""
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


def _check(
    rows: list[Int[np.ndarray, "_"]],
    max_new_tokens: int,
    stops: list[str],
    eos: list[int],
    temperature: float,
    top_p: float,
    key: Key[Array, ""] | None,
    decode: Callable[[list[int]], str] | None,
    length: int | None,
    vocab_size: int,
) -> None:
    """Raise ValueError for arguments of `generate` that do not fit together."""
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


def _padded(
    rows: list[Int[np.ndarray, "_"]], max_new_tokens: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"], int]:
    """The rows padded on the right to a bucket, their lengths, and the cache's capacity."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), bucket(int(lengths.max()))), np.int32)
    for row, prompt in zip(tokens, rows, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths, bucket(tokens.shape[1] + max_new_tokens)  # one capacity per bucket
