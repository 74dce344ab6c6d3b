"""95 % intervals of mean NLLs by the bootstrap over documents.

Documents are resampled, not tokens, because the tokens of one document are not independent draws.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64, Integer, Real


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with the 2.5 % and 97.5 % quantiles of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside the interval."""
        return not self.low <= value <= self.high


def _by_document(
    sums: Real[np.ndarray, "W"], clusters: Integer[np.ndarray, "W"]
) -> Float64[np.ndarray, "documents"]:
    """The windows of one document added up."""
    names, index = np.unique(clusters, return_inverse=True)
    return np.bincount(index, sums, len(names))


def _resampled(documents: int, draws: int, seed: int) -> Int64[np.ndarray, "draws documents"]:
    """How often each document is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=draws)


def mean_interval(
    sums: Real[np.ndarray, "W"],
    counts: Real[np.ndarray, "W"],
    clusters: Integer[np.ndarray, "W"],
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean NLL over tokens, in nats, with its interval.

    Args:
        sums: each window's NLL, summed over its tokens, in nats.
        counts: tokens of each window.
        clusters: the document of each window.
        draws: how often the documents are resampled.
        seed: of the resampling.
    """
    totals, tokens = _by_document(sums, clusters), _by_document(counts, clusters)
    weights = _resampled(len(totals), draws, seed)
    low, high = np.quantile(weights @ totals / (weights @ tokens), [0.025, 0.975])
    return Interval(float(totals.sum() / tokens.sum()), float(low), float(high))


def paired_difference(
    a: Real[np.ndarray, "W"],
    b: Real[np.ndarray, "W"],
    counts: Real[np.ndarray, "W"],
    clusters: Integer[np.ndarray, "W"],
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean NLL of `a` minus that of `b` on the same windows, documents resampled together.

    Other arguments as for `mean_interval`.
    """
    return mean_interval(np.asarray(a, float) - np.asarray(b, float), counts, clusters, draws, seed)
