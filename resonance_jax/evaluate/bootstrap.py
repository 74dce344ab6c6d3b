"""95 % intervals by the bootstrap over documents: tokens of one document are not independent draws."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with the 2.5 % and 97.5 % quantiles of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def _by_document(sums: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """f64[..., W] -> f64[..., documents]: windows of one document added up."""
    names, index = np.unique(clusters, return_inverse=True)
    totals = np.zeros((*sums.shape[:-1], len(names)))
    np.add.at(totals, (..., index), sums)
    return totals


def _resampled(clusters: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """f64[draws, documents]: how often each document is drawn."""
    documents = len(np.unique(clusters))
    rng = np.random.default_rng(seed)
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=draws).astype(np.float64)


def mean_interval(
    sums: np.ndarray, counts: np.ndarray, clusters: np.ndarray, draws: int = 2000, seed: int = 0
) -> Interval:
    """Token-weighted mean NLL. sums f64[W] (nats), counts i64[W] and clusters i64[W] (document) a window."""
    totals, tokens = _by_document(np.asarray(sums, float), clusters), _by_document(counts, clusters)
    weights = _resampled(clusters, draws, seed)
    low, high = np.quantile(weights @ totals / (weights @ tokens), [0.025, 0.975])
    return Interval(float(totals.sum() / tokens.sum()), float(low), float(high))


def paired_difference(
    a: np.ndarray, b: np.ndarray, counts: np.ndarray, clusters: np.ndarray, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean NLL of a minus that of b on the same windows, documents resampled together."""
    return mean_interval(np.asarray(a, float) - np.asarray(b, float), counts, clusters, draws, seed)
