"""Evaluation: NLL, perplexity under named protocols, intervals, PosGen, passkey, L-Eval."""

from resonance_jax.evaluate import (
    leval_asking,
    leval_scoring,
    passkey,
    posgen_accuracy,
    posgen_encodings,
)
from resonance_jax.evaluate.bootstrap import Interval, mean_interval, paired_difference
from resonance_jax.evaluate.nll import token_nll
from resonance_jax.evaluate.nll_store import Store
from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.evaluate.perplexity_sweep import perplexity, sweep

__all__ = [
    "Interval",
    "Perplexity",
    "Store",
    "leval_asking",
    "leval_scoring",
    "mean_interval",
    "paired_difference",
    "passkey",
    "perplexity",
    "posgen_accuracy",
    "posgen_encodings",
    "sweep",
    "token_nll",
]
