"""The rules: one pure function per RoPE scaling method, on the host in float64.

A rule maps (rotary size R, base b, …) to R/2 frequencies in radians per position and the attention
factor A that multiplies cos and sin (so A² multiplies the attention logits). Its keyword arguments are
the settings it takes: `scale` is the paper's s, `train_length` its L, `length` its L' (a rule that asks
for it is dynamic: another length is another table). Resonance is not here: it is a transform of any of
these tables (integer_wavelengths.py).

Conventions, said once: theta_j = b^(-2j/R), wavelength_j = 2 pi / theta_j, j = 0 … R/2-1;
`beta_fast` bounds the dimensions kept (many turns within L), `beta_slow` those interpolated (few turns).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Rule = tuple[np.ndarray, float]


def _theta(dim: int, base: float) -> np.ndarray:
    return np.float64(base) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def _ntk_base(dim: int, base: float, stretch: float) -> float:
    if dim <= 2:
        raise ValueError(f"NTK rules divide by rotary size - 2; got rotary size {dim}, expected 4 or more.")
    return base * stretch ** (dim / (dim - 2))


def default(dim: int, base: float) -> Rule:
    """Plain RoPE (Su et al. 2021; Resonance paper eq. 1)."""
    return _theta(dim, base), 1.0


def linear(dim: int, base: float, *, scale: float) -> Rule:
    """Position interpolation (Chen et al. 2023): theta / s."""
    return _theta(dim, base) / scale, 1.0


def ntk(dim: int, base: float, *, scale: float) -> Rule:
    """Static NTK-aware: base b s^(R/(R-2)) (YaRN eq. 14–16; the Resonance paper's C.2 prints s b)."""
    return _theta(dim, _ntk_base(dim, base, scale)), 1.0


def dynamic_ntk(
    dim: int, base: float, *, train_length: int, length: int, dynamic_factor: float = 1.0
) -> Rule:
    """NTK by the length in use: base b (f n/L - (f-1))^(R/(R-2)) if n > L (HF `dynamic`; paper f=1)."""
    if length <= train_length:
        return default(dim, base)
    stretch = dynamic_factor * length / train_length - (dynamic_factor - 1)
    return _theta(dim, _ntk_base(dim, base, stretch)), 1.0


def _kept(
    dim: int,
    base: float,
    train_length: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
    extrapolation_factor: float,
    ramp: str,
) -> np.ndarray:
    """Share of each frequency that is kept (1) rather than interpolated (0).

    `ramp="dimension"`: linear in the dimension index between two (floored, ceiled) bounds, as all released
    code does. `ramp="rotations"`: linear in the turns L / wavelength, as the YaRN paper prints it (eq. 18).
    """
    index = np.arange(dim // 2, dtype=np.float64)
    if ramp == "rotations":
        turns = train_length * _theta(dim, base) / (2 * math.pi)
        kept = np.clip((turns - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0)
    else:

        def dimension(turns: float) -> float:
            return dim * math.log(train_length / (2 * math.pi * turns)) / (2 * math.log(base))

        low, high = dimension(beta_fast), dimension(beta_slow)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        # The clamp at R-1 (not R/2-1) is what the released code and Hugging Face do.
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        kept = 1.0 - np.clip((index - low) / (high - low), 0.0, 1.0)
    return kept * extrapolation_factor


def ntk_by_parts(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    extrapolation_factor: float = 1.0,
    ramp: str = "dimension",
) -> Rule:
    """NTK-by-parts: (theta/s)(1-g) + theta g, g the kept share (YaRN Definition 2; YaRN without A)."""
    theta = _theta(dim, base)
    kept = _kept(dim, base, train_length, beta_fast, beta_slow, truncate, extrapolation_factor, ramp)
    return theta / scale * (1 - kept) + theta * kept, 1.0


def _mscale(scale: float, weight: float) -> float:
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0


def yarn(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    extrapolation_factor: float = 1.0,
    ramp: str = "dimension",
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
) -> Rule:
    """YaRN: NTK-by-parts with A = 0.1 ln s + 1 (YaRN Definition 3, as the released code and HF compute it).

    `attention_factor` replaces A; `mscale` and `mscale_all_dim` together give
    A = M(mscale)/M(mscale_all_dim), M(k) = 0.1 k ln s + 1 (DeepSeek).
    """
    theta, _ = ntk_by_parts(
        dim,
        base,
        scale=scale,
        train_length=train_length,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=truncate,
        extrapolation_factor=extrapolation_factor,
        ramp=ramp,
    )
    if attention_factor is not None:
        return theta, attention_factor
    if mscale is not None and mscale_all_dim is not None:
        return theta, _mscale(scale, mscale) / _mscale(scale, mscale_all_dim)
    return theta, _mscale(scale, 1.0)


def dynamic_yarn(dim: int, base: float, *, train_length: int, length: int, **options) -> Rule:
    """YaRN with s = max(1, n/L) of the length in use (YaRN section 3.3)."""
    return yarn(dim, base, scale=max(1.0, length / train_length), train_length=train_length, **options)


def llama3(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> Rule:
    """Llama 3: keep wavelengths under L/high, divide those over L/low by s, blend between (HF `llama3`)."""
    theta = _theta(dim, base)
    turns = train_length * theta / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return (1 - kept) * theta / scale + kept * theta, 1.0


def longrope(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    length: int | None = None,
    attention_factor: float | None = None,
) -> Rule:
    """LongRoPE: theta_j / factor_j, the long list if n > L; A = sqrt(1 + ln s / ln L) always (HF)."""
    if length is None and tuple(short_factor) != tuple(long_factor):
        raise ValueError(
            "longrope switches lists at train_length: declare it, frequencies(spec, length=...)."
        )
    factor = long_factor if length is not None and length > train_length else short_factor
    if attention_factor is None:
        if scale > 1 and train_length < 2:
            raise ValueError("longrope divides by ln train_length: expected at least 2, or attention_factor.")
        attention_factor = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(train_length))
    return _theta(dim, base) / np.asarray(factor, np.float64), attention_factor


def proportional(dim: int, base: float, *, scale: float = 1.0, partial_rotary_factor: float = 1.0) -> Rule:
    """Gemma 4: the first part of the pairs at full-size exponents, the rest never turn; all / s (HF)."""
    theta = _theta(dim, base) / scale
    theta[int(partial_rotary_factor * dim // 2) :] = 0.0
    return theta, 1.0


METHODS: dict[str, Callable[..., Rule]] = {
    rule.__name__: rule
    for rule in (
        default,
        linear,
        ntk,
        dynamic_ntk,
        ntk_by_parts,
        yarn,
        dynamic_yarn,
        llama3,
        longrope,
        proportional,
    )
}
"""Every method by name. To add one: write its rule above, list it here."""
