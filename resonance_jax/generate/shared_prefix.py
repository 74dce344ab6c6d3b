"""A prefix that several prompts share, such as a document that many questions are asked about.

It goes through the decoder once, and its keys and values are held once; every prompt goes on from there.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Int, Integer

from resonance_jax import rope
from resonance_jax.generate.cache import Cache
from resonance_jax.generate.prefilling import bucket, prefill
from resonance_jax.model import Decoder, DecoderConfig
from resonance_jax.model.decoder import Weights

LEAST = 128
"""Fewer shared tokens are not worth a program of their own."""


@dataclasses.dataclass(frozen=True)
class SharedPrefix:
    """The tokens that prompts share, and a cache of one row that holds them under one table."""

    tokens: Int[np.ndarray, "P"]
    cache: Cache

    def rest(self, index: int, prompt: Int[np.ndarray, "_"]) -> Int[np.ndarray, "_"]:
        """A prompt's tokens after the prefix. ValueError if it begins otherwise, or has none after it."""
        P = len(self.tokens)
        if len(prompt) <= P or not np.array_equal(prompt[:P], self.tokens):
            raise ValueError(
                f"prompt {index} does not go on from the {P} tokens of the shared prefix; give the prompts "
                "that it was made of."
            )
        return prompt[P:]


def common_length(prompts: Sequence[Integer[np.ndarray, "_"]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one token of its own."""
    most = min(len(prompt) for prompt in prompts) - 1
    first = np.asarray(prompts[0])[:most]
    for prompt in prompts[1:]:
        differs = np.flatnonzero(first != np.asarray(prompt)[: len(first)])
        first = first[: differs[0]] if len(differs) else first
    return len(first)


def share(
    lm: Decoder,
    prompts: Sequence[Integer[Array | np.ndarray, "_"] | Sequence[int]],
    freqs: rope.Tables,
    least: int = LEAST,
) -> SharedPrefix | None:
    """Prefill what all prompts begin with; None for one prompt, or for fewer shared tokens than `least`.

    On a mesh nothing is shared: its data axes cut the rows, of which a prefix is one.

    Args:
        lm: the decoder.
        prompts: token ids.
        freqs: the table of the whole sequences that are to come.
        least: tokens that are worth it.
    """
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    if len(rows) < 2 or lm.mesh is not None or (length := common_length(rows)) < max(1, least):
        return None
    tokens = np.zeros((1, bucket(length)), np.int32)
    tokens[0, :length] = rows[0][:length]
    cache = _held(lm.config, lm.params, tokens, np.array([length], np.int32), freqs)
    return SharedPrefix(rows[0][:length], cache)


@partial(jax.jit, static_argnames="config")
def _held(
    config: DecoderConfig,
    params: Weights,
    tokens: Int[Array, "1 T"],
    lengths: Int[Array, "1"],
    freqs: rope.Tables,
) -> Cache:
    """A cache that holds the tokens."""
    return prefill(config, params, tokens, lengths, freqs, tokens.shape[1])[1]
