"""Evaluation: NLL, perplexity under named protocols, intervals, PosGen, passkey, L-Eval."""

from resonance_jax.evaluate import leval, passkey, posgen, posgen_tables
from resonance_jax.evaluate.bootstrap import Interval, mean_interval, paired_difference
from resonance_jax.evaluate.nll import token_nll
from resonance_jax.evaluate.perplexity import Perplexity, Store, perplexity, sweep

__all__ = [
    "Interval",
    "Perplexity",
    "Store",
    "leval",
    "mean_interval",
    "paired_difference",
    "passkey",
    "perplexity",
    "posgen",
    "posgen_tables",
    "sweep",
    "token_nll",
]
