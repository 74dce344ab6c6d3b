"""AdamW's settings; train.optimizer makes an optimizer of them."""

import dataclasses

SCHEDULES = ("linear", "cosine", "constant", "onecycle")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, and its learning-rate schedule.

    The schedules: "linear" (after the warmup down to zero over the real number of steps: the paper's
    fine-tuning), "cosine" (down to a tenth), "constant", and "onecycle" (PyTorch's OneCycleLR with a cosine
    anneal, which also cycles beta1 0.95 -> 0.85 -> 0.95; warmup is its pct_start). Raises ValueError for
    another schedule, or a warmup that is no share.
    """

    lr: float = 2e-5
    """Peak learning rate."""
    beta1: float = 0.9
    """AdamW's decay rate of the mean of gradients."""
    beta2: float = 0.95
    """AdamW's decay rate of the mean of squared gradients."""
    eps: float = 1e-8
    """AdamW's term that keeps a division from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every trained parameter."""
    schedule: str = "linear"
    """linear, cosine, constant or onecycle, after the warmup."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: float | None = None
    """Largest global norm of the gradient; none by default, as in the paper."""
    freeze: tuple[str, ...] = ()
    """Prefixes of parameter paths that get neither update nor decay, such as layers/up."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"unknown schedule {self.schedule!r}; expected linear, cosine, constant or onecycle."
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup}.")
