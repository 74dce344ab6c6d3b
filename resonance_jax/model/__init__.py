"""The decoder, its shapes, attention and loss."""

from resonance_jax.model.config import PRESETS, DecoderConfig
from resonance_jax.model.decoder import Decoder, forward, head, hidden_states
from resonance_jax.model.kernel_choice import attention, on_this_machine
from resonance_jax.model.layer_types import LayerType
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.model.small import small_llama

__all__ = [
    "PRESETS",
    "Decoder",
    "DecoderConfig",
    "LayerType",
    "attention",
    "forward",
    "head",
    "hidden_states",
    "linear_cross_entropy",
    "on_this_machine",
    "small_llama",
]
