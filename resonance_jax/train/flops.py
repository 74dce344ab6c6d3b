"""How much a training step computes, and how much a chip could: the two sides of MFU."""

import math

import jax

from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.parameters import declare

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA T4": 65e12,
    "Tesla T4": 65e12,
    "NVIDIA V100": 125e12,
    "Tesla V100": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense 16-bit FLOP/s of a chip, by the beginning of jax's device_kind, from the vendors' data sheets."""


def peak(device_kind: str) -> float | None:
    """FLOP/s of the chip, None for one that is not in the table (a CPU)."""
    found = [name for name in PEAKS if device_kind.startswith(name)]
    return PEAKS[max(found, key=len)] if found else None


def per_token(config: DecoderConfig, length: int) -> float:
    """FLOPs a token of a training step at `length` positions: 6 N + 6 L T D, causal.

    N: the parameters that are multiplied, so without an embedding that is only looked up. T D: every query
    meets T / 2 keys on average (fewer with a window), D being heads times head size. Recomputation is not
    counted (PaLM, Chowdhery et al. 2022, appendix B).
    """
    flat = jax.tree.leaves(declare(config), is_leaf=lambda x: hasattr(x, "shape"))
    multiplied = sum(math.prod(p.shape) for p in flat)
    if not config.tie_embeddings:
        multiplied -= config.vocab_size * config.d_model
    return 6 * multiplied + attention_per_token(config, length)


def attention_per_token(config: DecoderConfig, length: int) -> float:
    """The part of it that queries and keys, weights and values take."""
    window = min(config.window or length, length)
    keys = window - window * window / (2 * length)
    return 12 * config.n_layers * config.n_heads * config.head_dim * keys


def mfu(
    config: DecoderConfig, length: int, tokens_per_second: float, devices: int, kind: str
) -> float | None:
    """Share of the chips' dense peak that `tokens_per_second` over all of them comes to; None on a CPU."""
    most = peak(kind)
    return None if most is None else tokens_per_second * per_token(config, length) / (devices * most)
