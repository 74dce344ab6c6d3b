"""Training: one run or many at once, resumable to the last bit."""

from resonance_jax.train.loop import Evaluator, Interrupted
from resonance_jax.train.many import ManyRuns, TrainConfig, fit_many, stack_frequencies
from resonance_jax.train.optimizer import OptimizerConfig

__all__ = [
    "Evaluator",
    "Interrupted",
    "ManyRuns",
    "OptimizerConfig",
    "TrainConfig",
    "fit_many",
    "stack_frequencies",
]
