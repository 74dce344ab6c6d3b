"""Training: one run or many at once. It can be stopped at any time, and goes on with the same numbers."""

from resonance_jax.settings.lora import LoraConfig
from resonance_jax.settings.optimizer import OptimizerConfig
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.encodings import stack_frequencies
from resonance_jax.train.loop import Evaluator, Interrupted
from resonance_jax.train.many_runs import ManyRuns, fit_many
from resonance_jax.train.one_run import Run, fit
from resonance_jax.train.pretraining import pretrain
from resonance_jax.train.rows import Rows
from resonance_jax.train.saved_runs import saved_run

__all__ = [
    "Evaluator",
    "Interrupted",
    "LoraConfig",
    "ManyRuns",
    "OptimizerConfig",
    "Rows",
    "Run",
    "TrainConfig",
    "fit",
    "fit_many",
    "pretrain",
    "saved_run",
    "stack_frequencies",
]
