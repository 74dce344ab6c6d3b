"""To and from other software: Hugging Face weights and configs, and whether we compute what it does."""

from resonance_jax.interop.hf_weights import load_hf, save_hf
from resonance_jax.interop.made_once import load_or_make
from resonance_jax.interop.parity_check import parity
from resonance_jax.interop.parity_result import Parity
from resonance_jax.interop.vocabulary import check_vocabulary

__all__ = ["Parity", "check_vocabulary", "load_hf", "load_or_make", "parity", "save_hf"]
