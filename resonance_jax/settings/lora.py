"""The settings of LoRA adapters (Hu et al. 2021); model.lora makes adapters of them."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters x A B of rank r beside every linear layer, scaled by alpha / r.

    To train norms and embeddings as well is LongLoRA's choice (Chen et al. 2023). Raises ValueError for a
    rank below 1, an alpha that is not positive, or a dropout outside [0, 1).
    """

    OPTION_PREFIX: ClassVar[str] = "lora"

    rank: int = 16
    """The adapters' rank r."""
    alpha: float = 64.0
    """The adapters are scaled by alpha / r."""
    dropout: float = 0.05
    """Dropout on the adapters' input, in training."""
    norms: bool = False
    """Train the norms whole as well."""
    embeddings: bool = False
    """Train the embeddings whole as well."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA needs rank >= 1, alpha > 0 and dropout in [0, 1), got {self.rank}, {self.alpha} and "
                f"{self.dropout}."
            )

    def whole(self, name: str) -> bool:
        """Whether the parameter of this name is trained whole."""
        return (self.norms and name.endswith("norm")) or (self.embeddings and name == "embed")
