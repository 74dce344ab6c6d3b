"""To and from other software: Hugging Face weights and configs."""

from resonance_jax.interop.hf_weights import load_hf, save_hf

__all__ = ["load_hf", "save_hf"]
