"""How much a training step computes, and how much a chip could: the two sides of MFU."""

import math
import re

from resonance_jax.model import lora as adapters
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.parameters import Parameter, declare
from resonance_jax.settings.lora import LoraConfig

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "Tesla T4": 65e12,
    "NVIDIA T4": 65e12,
    "Tesla V100": 125e12,
    "NVIDIA V100": 125e12,
    "Tesla V100 PCIE": 112e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A100 PCIE": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIE": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
}
"""Dense 16-bit FLOP/s by a chip's name as `peak` reads jax's device_kind, from the vendors' data sheets."""

_MEMORY_OR_BOARD = re.compile(r"\d+GB|HBM\d\w*|SXM\d?", re.IGNORECASE)


def peak(device_kind: str) -> float | None:
    """Dense 16-bit FLOP/s of a chip by jax's device_kind, None where the table does not have it (a CPU).

    The whole name has to agree, but for its case, its memory ("80GB HBM3") and an SXM board: an L40S is no
    L4, an H100 on PCIe is slower than one on SXM, and a MIG slice of a chip is not the chip.
    """
    words = [word for word in re.split(r"[\s-]+", device_kind) if not _MEMORY_OR_BOARD.fullmatch(word)]
    known = {name.casefold(): flops for name, flops in PEAKS.items()}
    return known.get(" ".join(words).casefold())


def multiplied(config: DecoderConfig, lora: LoraConfig | None = None) -> tuple[int, int]:
    """(trained, frozen): how many weights every token is multiplied by.

    An embedding that is only looked up is not multiplied. Without adapters every weight is trained.
    """
    weights = adapters.flatten(declare(config))
    if not config.tie_embeddings:
        del weights["embed"]
    if lora is None:
        return sum(_size(p) for p in weights.values()), 0
    adapted = [p.shape for path, p in weights.items() if path.removeprefix("layers/") in adapters.LINEAR]
    added = sum(L * lora.rank * (I + O) for L, I, O in adapted)
    whole = sum(_size(p) for path, p in weights.items() if lora.whole(path))
    return added + whole, sum(_size(p) for p in weights.values()) - whole


def _size(parameter: Parameter) -> int:
    return math.prod(parameter.shape)


def forward_per_token(config: DecoderConfig, lora: LoraConfig | None = None) -> float:
    """FLOPs per token of a forward pass without attention's products: 2 per weight."""
    return 2 * sum(multiplied(config, lora))


def per_token(config: DecoderConfig, length: int, lora: LoraConfig | None = None) -> float:
    """FLOPs per token of a training step at `length` positions: 6 N + 4 N' + 6 L T D, causal.

    N: the trained weights, each used forwards, for the gradient of its input and for its own. N': the frozen
    weights beside LoRA's adapters, which have no gradient of their own. L T D: in each of L layers a query
    meets T / 2 keys on average (fewer with a window), D being heads times head size. Recomputation is not
    counted (PaLM, Chowdhery et al. 2022, appendix B).
    """
    trained, frozen = multiplied(config, lora)
    return 6 * trained + 4 * frozen + attention_per_token(config, length)


def attention_per_token(config: DecoderConfig, length: int) -> float:
    """The part of per_token that attention's two products take: queries by keys, weights by values."""
    windows = [min(kind.window or length, length) for kind in config.types]
    keys = sum(window - window * window / (2 * length) for window in windows)
    return 12 * config.n_heads * config.head_dim * keys


def mfu(
    config: DecoderConfig,
    length: int,
    tokens_per_second: float,
    devices: int,
    kind: str,
    lora: LoraConfig | None = None,
) -> float | None:
    """Model FLOPs utilisation: the share of the chips' dense peak that a training reaches.

    Args:
        config, length, lora: what is trained, as in per_token.
        tokens_per_second: over all devices.
        devices: how many there are.
        kind: jax's device_kind; None is returned where its peak is not known.
    """
    most = peak(kind)
    needed = per_token(config, length, lora)
    return None if most is None else tokens_per_second * needed / (devices * most)
