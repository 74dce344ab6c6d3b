"""How long and how a run trains, as data."""

import dataclasses
import math
import numbers

from resonance_jax.settings.optimizer import OptimizerConfig

MAPPED = ("auto", "vmap", "map")
PACED_STEPS = 8
"""The most steps of a call where nobody says how many."""
SEEDS = 1 << 32
"""Seeds are below it: they are 32 bits on the devices."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how a run trains. Raises ValueError for numbers that no training can have.

    steps: optimizer steps. optimizer: AdamW's numbers. micro: rows in a micro-batch (0: all rows at once).
    steps_per_call: steps between two looks at the clock, at signals and at the log; None: as many as fit
    into a second, at most PACED_STEPS. mapped: how fit_many maps the runs on one device: "vmap", "map", or
    "auto". save_seconds: between checkpoints (0: after every call).
    """

    steps: int
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    micro: int = 0
    steps_per_call: int | None = 8
    mapped: str = "auto"
    save_seconds: float = 30.0

    @property
    def most_steps_per_call(self) -> int:
        """The most steps of a call."""
        return self.steps_per_call or PACED_STEPS

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1)
        check_whole("micro", self.micro, 0)
        if self.steps_per_call is not None:
            check_whole("steps_per_call", self.steps_per_call, 1)
        if self.mapped not in MAPPED:
            raise ValueError(f"unknown mapped {self.mapped!r}; expected one of {', '.join(MAPPED)}.")
        if math.isnan(self.save_seconds) or self.save_seconds < 0:
            raise ValueError(f"save_seconds must be at least 0, got {self.save_seconds}.")


def check_whole(name: str, value: int, least: int, below: int | None = None) -> None:
    """Raise ValueError unless value is a whole number of at least `least`, and less than `below` if given."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least or (below is not None and value >= below):
        limit = "" if below is None else f" and below {below:,}"
        raise ValueError(f"{name} must be a whole number of at least {least}{limit}, got {value!r}.")
