"""AdamW's settings; train.optimizer makes an optimizer of them."""

import dataclasses
import math

SCHEDULES = ("linear", "cosine", "constant", "onecycle")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, and its learning-rate schedule.

    The schedules: "linear" (after the warmup down to zero over the real number of steps: the paper's
    fine-tuning), "cosine" (down to a tenth), "constant", and "onecycle" (PyTorch's OneCycleLR with a cosine
    anneal, which also cycles beta1 0.95 -> 0.85 -> 0.95; warmup is its pct_start). Raises ValueError for
    another schedule, and for a number out of its range.
    """

    lr: float = 2e-5
    """Peak learning rate."""
    beta1: float = 0.9
    """AdamW's decay rate of the mean of gradients."""
    beta2: float = 0.95
    """AdamW's decay rate of the mean of squared gradients."""
    eps: float = 1e-8
    """The term that keeps AdamW from dividing by zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every trained parameter."""
    schedule: str = "linear"
    """linear, cosine, constant or onecycle, after the warmup."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: float | None = None
    """Largest global norm of the gradient; none by default, as in the paper."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by path or by its part before a slash: embed, layers, layers/up."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; expected one of {', '.join(SCHEDULES)}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup}.")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}.")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be a positive finite number, got {self.eps}.")
        if not (0 <= self.beta1 < 1 and 0 < self.beta2 < 1):
            raise ValueError(
                f"expected beta1 in [0, 1) and beta2 in (0, 1), got {self.beta1} and {self.beta2}."
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be a positive norm, or None for no clipping, got {self.clip}.")
        if isinstance(self.freeze, str):
            raise ValueError(f"freeze is a tuple of paths, got {self.freeze!r}; write ({self.freeze!r},).")

    def identity(self, steps: int) -> dict[str, int | float | str | tuple[str, ...] | None]:
        """What the updates of a run of `steps` steps depend on: the fields, and how many steps there are.

        Under a constant rate the number of steps matters only through the warmup.
        """
        stated = dataclasses.asdict(self)
        if self.schedule != "constant":
            return {**stated, "steps": steps}
        del stated["warmup"]
        return {**stated, "warmup_steps": round(self.warmup * steps)}
