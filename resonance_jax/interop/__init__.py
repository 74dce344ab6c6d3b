"""To and from other software: Hugging Face weights and configs, and whether we compute what it does."""

from resonance_jax.interop.hf_weights import load_hf, save_hf
from resonance_jax.interop.parity_check import Parity, parity

__all__ = ["Parity", "load_hf", "parity", "save_hf"]
