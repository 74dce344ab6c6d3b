"""The settings of a short training from scratch; train.pretraining runs it."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A training of fresh weights under plain RoPE, at the short length."""

    OPTION_PREFIX: ClassVar[str] = "pretrain"

    steps: int = 0
    """Steps of training under plain RoPE at --train-length before the fine-tuning, where no checkpoint is
    given."""
    batch_size: int = 8
    """Rows per step of that pretraining."""
    lr: float = 3e-3
    """Peak learning rate of that pretraining."""
