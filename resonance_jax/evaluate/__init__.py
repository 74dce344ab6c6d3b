"""Evaluation: NLL, perplexity under named protocols, intervals, PosGen."""

from resonance_jax.evaluate import posgen, posgen_tables
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
    "posgen",
    "posgen_tables",
    "sweep",
    "token_nll",
]
