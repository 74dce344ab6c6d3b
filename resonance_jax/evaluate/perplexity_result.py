"""The result of a perplexity evaluation: sums by window and by position, and the figures made of them."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float64, Int64

from resonance_jax.evaluate.bootstrap import Interval, mean_interval

BIN = 64
"""Tokens per bin of NLL by position."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The result of one encoding at one length, over W windows. NLL is in nats.

    Both averages are always there: token_mean weighs every token alike, window_mean every window (so that a
    first window of 32k tokens counts as much as one of 256).

    Attributes:
        protocol, stride, bos_id: how documents were cut (evaluate.perplexity_protocols).
        length: positions of a window.
        nll: the NLL of each window, summed over its scored tokens.
        scored: how many tokens of each window were scored.
        document: the number of the document that each window is of.
        position_nll, position_scored: the same sums by position in the window, in bins of BIN positions.
        computed: the tokens that went through the decoder for it, padding included; 0 where they went for a
            longer one of which it is a part, or are not known.
    """

    protocol: str
    length: int
    stride: int | None
    bos_id: int | None
    nll: Float64[np.ndarray, "W"]
    scored: Int64[np.ndarray, "W"]
    document: Int64[np.ndarray, "W"]
    position_nll: Float64[np.ndarray, "bins"]
    position_scored: Int64[np.ndarray, "bins"]
    computed: int = 0

    @property
    def finite(self) -> bool:
        """Whether every NLL is a number, which overflowing activations are not."""
        return bool(np.isfinite(self.nll).all())

    @property
    def mean_nll(self) -> float:
        """The mean NLL over tokens, in nats."""
        return float(self.nll.sum() / self.scored.sum())

    @property
    def token_mean(self) -> float:
        """exp of the mean NLL over tokens."""
        return float(np.exp(self.mean_nll))

    @property
    def window_mean(self) -> float:
        """exp of the mean over windows of a window's mean NLL (the YaRN script's figure)."""
        return float(np.exp((self.nll / self.scored).mean()))

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return int(self.scored.sum())

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self.nll)

    @property
    def documents(self) -> int:
        """How many documents the windows are of."""
        return len(np.unique(self.document))

    def interval(self) -> Interval:
        """token_mean with its 95 % bootstrap interval over documents."""
        nats = mean_interval(self.nll, self.scored, self.document)
        return Interval(*(float(np.exp(x)) for x in (nats.value, nats.low, nats.high)))


def merge(parts: Sequence[Perplexity]) -> Perplexity:
    """The result over all documents from results over some of them, which agree in everything else."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("nll", "scored", "document")
    }
    added = {
        name: np.sum([getattr(part, name) for part in parts], axis=0)
        for name in ("position_nll", "position_scored")
    }
    known = all(part.computed for part in parts)
    return dataclasses.replace(
        parts[0], **joined, **added, computed=sum(part.computed for part in parts) if known else 0
    )


class Work(TypedDict):
    """How much work scoring was.

    Attributes:
        computed: tokens that went through the decoder, padding included.
        scored: tokens that were scored.
    """

    computed: int
    scored: int


def work(results: Iterable[Perplexity]) -> Work:
    """The work of results by length, or of several of them together; computed is 0 where it is not known."""
    done = [result for result in results if result.computed]
    return {
        "computed": sum(result.computed for result in done),
        "scored": sum(result.tokens for result in done),
    }
