"""Settings as plain dataclasses, which a study's config nests as they are.

Nothing here imports jax, so that a command's --help is quick. Each field says in one sentence what it is for:
the sentence is also the option's help. Where OPTION_PREFIX is set, an option is named --PREFIX-FIELD,
elsewhere --FIELD (resonance_jax.command.options).
"""

from resonance_jax.settings.lora import LoraConfig
from resonance_jax.settings.mesh import MeshConfig
from resonance_jax.settings.optimizer import OptimizerConfig
from resonance_jax.settings.pretraining import PretrainConfig

__all__ = ["LoraConfig", "MeshConfig", "OptimizerConfig", "PretrainConfig"]
