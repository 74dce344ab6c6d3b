"""How long and how a run trains, as data."""

import dataclasses

from resonance_jax.settings.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how a run trains. micro: rows a micro-batch (0: all). mapped: how the runs on one device
    are mapped, "vmap", "map" or "auto"."""

    steps: int
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    micro: int = 0
    steps_per_call: int = 8
    mapped: str = "auto"
    save_seconds: float = 30.0
