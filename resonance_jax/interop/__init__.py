"""To and from other software: checkpoints of Hugging Face and llama.cpp; whether we compute what it does."""

from resonance_jax.interop.checkpoint import Checkpoint, open_checkpoint
from resonance_jax.interop.hf_export import save_hf
from resonance_jax.interop.hf_weights import load_hf
from resonance_jax.interop.parity_check import parity
from resonance_jax.interop.parity_result import Parity

__all__ = [
    "Checkpoint",
    "Parity",
    "load_hf",
    "open_checkpoint",
    "parity",
    "save_hf",
]
