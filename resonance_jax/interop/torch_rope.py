"""Frequencies as PyTorch makes them: transformers' where it has a name, else once more in torch, float64.

Nothing here calls resonance_jax.rope's rules: it is the other side of a comparison.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from resonance_jax import rope

if TYPE_CHECKING:
    import torch
    import transformers


class TorchTable(NamedTuple):
    """A table as PyTorch computes it.

    Attributes:
        inv_freq: radians per position.
        attention_factor: multiplies cos and sin.
        source: who computed it, for people.
        rtol: the relative accuracy that the source's own arithmetic has.
    """

    inv_freq: Float64[np.ndarray, "pairs"]
    attention_factor: float
    source: str
    rtol: float


def table(spec: rope.RopeSpec, length: int) -> TorchTable:
    """The table of an encoding for sequences of `length` positions, computed in PyTorch.

    Raises ValueError for a spec that rotates only a part of each head, which LLaMA and Mistral never do.
    """
    try:
        stated = rope.to_hf(spec)
    except ValueError:
        inv_freq, attention_factor = _table(spec, length)
        return TorchTable(inv_freq.numpy(), attention_factor, "torch float64", 1e-12)
    import transformers

    sizes = {"hidden_size": 2 * spec.head_dim, "num_attention_heads": 2, "head_dim": spec.head_dim}
    longest = {"max_position_embeddings": spec.train_length or length}
    fields: dict[str, Any] = longest | sizes | stated
    return transformers_table(transformers.LlamaConfig(**fields), length)


def transformers_table(
    config: "transformers.PreTrainedConfig", length: int, layer_type: str | None = None
) -> TorchTable:
    """The table that transformers makes of a config, after one call with `length` positions.

    layer_type: which layers', where each type has its own.
    """
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if layer_type is not None:
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

        by_type = Gemma3RotaryEmbedding(config)  # pyright: ignore[reportArgumentType]  # any with its fields
        by_type(torch.zeros(1), torch.arange(length)[None], layer_type)
        inv_freq = getattr(by_type, f"{layer_type}_inv_freq").double().numpy()
        factor = float(getattr(by_type, f"{layer_type}_attention_scaling"))
        return TorchTable(inv_freq, factor, f"transformers float32, {layer_type}", 2e-6)
    rotary = LlamaRotaryEmbedding(config)  # pyright: ignore[reportArgumentType]  # any with its fields
    rotary(torch.zeros(1), torch.arange(length)[None])  # dynamic tables follow the longest position
    inv_freq = rotary.inv_freq.double().numpy()
    return TorchTable(inv_freq, float(rotary.attention_scaling), "transformers float32", 2e-6)


def cos_sin(
    table: TorchTable, length: int
) -> tuple[Float32[np.ndarray, "{length} pairs"], Float32[np.ndarray, "{length} pairs"]]:
    """Cosines and sines of positions 0 … length-1 by the float32 product that transformers takes."""
    import torch

    inv_freq = torch.as_tensor(table.inv_freq, dtype=torch.float32)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq)
    factor = table.attention_factor
    return (angles.cos() * factor).numpy(), (angles.sin() * factor).numpy()


def _table(spec: rope.RopeSpec, length: int) -> "tuple[torch.Tensor, float]":
    """(inv_freq in radians per position, attention factor) by the rules below."""
    import torch

    inv_freq, attention_factor = _unrounded(spec, length)
    if spec.resonance:
        turning = inv_freq > 0
        wavelength = torch.round(2 * math.pi / inv_freq[turning])  # half to even, as the release
        inv_freq = inv_freq.clone()
        inv_freq[turning] = 2 * math.pi / wavelength
    return inv_freq, attention_factor


def _unrounded(spec: rope.RopeSpec, length: int) -> "tuple[torch.Tensor, float]":
    """The same before wavelengths are rounded. Every rule in turn; s, L and n as in the papers."""
    import torch

    s, L, n, R = spec.scale, spec.train_length, length, spec.rotary_dim
    powers = torch.arange(0, R, 2, dtype=torch.float64) / R
    theta = lambda base: torch.pow(torch.tensor(base, dtype=torch.float64), -powers)
    plain, m = theta(spec.base), spec.method
    if m == "default":
        return plain, 1.0
    if m == "linear":
        return plain / s, 1.0
    if m == "ntk":
        return theta(spec.base * s ** (R / (R - 2))), 1.0
    if m == "proportional":
        turning = int(spec.partial_rotary_factor * R // 2)
        return torch.cat([plain[:turning] / s, torch.zeros(R // 2 - turning, dtype=torch.float64)]), 1.0
    if m not in ("dynamic_ntk", "longrope", "llama3", "ntk_by_parts", "yarn", "dynamic_yarn"):
        raise ValueError(f"the rule of {m!r} is not written in PyTorch here, so there is nothing to compare.")
    assert L is not None  # these can't do without it
    if m == "dynamic_ntk":
        growth = max(1.0, spec.dynamic_factor * (n / L - 1) + 1)
        return theta(spec.base * growth ** (R / (R - 2))), 1.0
    if m == "longrope":
        factors = torch.tensor(spec.long_factor if n > L else spec.short_factor, dtype=torch.float64)
        default = math.sqrt(1 + math.log(s) / math.log(L)) if s > 1 else 1.0
        return plain / factors, spec.attention_factor or default
    if m == "llama3":
        turns = L * plain / (2 * math.pi)
        low, high = spec.low_freq_factor, spec.high_freq_factor
        return torch.lerp(plain / s, plain, torch.clamp((turns - low) / (high - low), 0, 1)), 1.0
    s = max(1.0, n / L) if m == "dynamic_yarn" else s
    mixed = torch.lerp(plain / s, plain, _kept(spec, L, plain))
    return mixed, 1.0 if m == "ntk_by_parts" else _attention_factor(spec, s)


def _kept(spec: rope.RopeSpec, train_length: int, plain: "torch.Tensor") -> "torch.Tensor":
    """The share of each frequency that YaRN keeps."""
    import torch

    if spec.ramp == "rotations":
        turns = train_length * plain / (2 * math.pi)
        kept = (turns - spec.beta_slow) / (spec.beta_fast - spec.beta_slow)
    else:
        pair = [
            spec.rotary_dim / 2 * math.log(train_length / beta / (2 * math.pi), spec.base)
            for beta in (spec.beta_fast, spec.beta_slow)
        ]
        first, last = (math.floor(pair[0]), math.ceil(pair[1])) if spec.truncate else pair
        first, last = max(first, 0), min(last, spec.rotary_dim - 1)
        last = last + 0.001 if first == last else last
        index = torch.arange(spec.rotary_dim // 2, dtype=torch.float64)
        kept = (last - index) / (last - first)
    return torch.clamp(kept, 0, 1) * spec.extrapolation_factor


def _attention_factor(spec: rope.RopeSpec, s: float) -> float:
    """YaRN's attention factor at a scale."""
    if spec.attention_factor is not None:
        return spec.attention_factor
    if s <= 1:
        return 1.0
    grown = lambda weight: 1 + 0.1 * weight * math.log(s)
    return grown(spec.mscale) / grown(spec.mscale_all_dim) if spec.mscale is not None else grown(1.0)
