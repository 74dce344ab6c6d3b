"""Evaluation: NLL, perplexity under named protocols, intervals."""

from resonance_jax.evaluate.bootstrap import Interval, mean_interval, paired_difference
from resonance_jax.evaluate.nll import token_nll
from resonance_jax.evaluate.perplexity import Perplexity, Store, perplexity, sweep

__all__ = [
    "Interval",
    "Perplexity",
    "Store",
    "mean_interval",
    "paired_difference",
    "perplexity",
    "sweep",
    "token_nll",
]
