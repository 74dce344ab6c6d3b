"""Evaluation: NLL, perplexity under named protocols, intervals, PosGen, passkey, L-Eval."""

from resonance_jax.evaluate import (
    leval_asking,
    leval_scoring,
    passkey,
    posgen_accuracy,
    posgen_encodings,
)
from resonance_jax.evaluate.bootstrap import Interval, mean_interval, paired_difference
from resonance_jax.evaluate.documents import cut_pieces, first_documents
from resonance_jax.evaluate.encoding_sweeps import Subject, sweep_each
from resonance_jax.evaluate.nll import token_nll
from resonance_jax.evaluate.nll_store import Store
from resonance_jax.evaluate.perplexity_result import Perplexity, work
from resonance_jax.evaluate.perplexity_sweep import perplexity, sweep

__all__ = [
    "Interval",
    "Perplexity",
    "Store",
    "Subject",
    "cut_pieces",
    "first_documents",
    "leval_asking",
    "leval_scoring",
    "mean_interval",
    "paired_difference",
    "passkey",
    "perplexity",
    "posgen_accuracy",
    "posgen_encodings",
    "sweep",
    "sweep_each",
    "token_nll",
    "work",
]
