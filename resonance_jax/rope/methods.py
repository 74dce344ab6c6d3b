"""Every RoPE scaling method: its rule, a pure function on the host in float64, and its record next to it.

A rule maps (rotary size R, base b, settings) to R/2 frequencies in radians per position and the attention
factor A that multiplies cos and sin (so A² multiplies the attention logits). Its settings are keyword
arguments: `scale` is the paper's s, `train_length` its L, `length` its L' (a rule that asks for it is
dynamic: another length is another table). Resonance is not here: it is a transform of any of these tables
(integer_wavelengths.py).

Conventions, said once: theta_j = b^(-2j/R), wavelength_j = 2 pi / theta_j, j = 0 … R/2-1;
`beta_fast` bounds the dimensions kept (many turns within L), `beta_slow` those interpolated (few turns).

To add a method, write its rule and put its record into METHODS, here. Nothing else lists methods.
"""

import math
from typing import TypedDict, Unpack

import numpy as np
from jaxtyping import Float64

from resonance_jax.rope.schema import Method, Option, RopeType, Table, Value

METHODS: dict[str, Method] = {}
"""Every method by name."""


def _theta(dim: int, base: float) -> Float64[np.ndarray, "pairs"]:
    return np.float64(base) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def default(dim: int, base: float) -> Table:
    """Plain RoPE (Su et al. 2021; Resonance paper eq. 1)."""
    return _theta(dim, base), 1.0


METHODS["default"] = Method(
    default,
    title="RoPE",
    aliases=("none",),
    hf_type="default",
    read_from={"default": RopeType(keys=(), without_factor="one")},
)


def linear(dim: int, base: float, *, scale: float) -> Table:
    """Position interpolation (Chen et al. 2023): theta / s."""
    return _theta(dim, base) / scale, 1.0


METHODS["linear"] = Method(linear, title="Linear", hf_type="linear", read_from={"linear": RopeType()})


def _ntk_base(dim: int, base: float, stretch: float) -> float:
    if dim <= 2:
        raise ValueError(f"NTK rules divide by rotary size - 2; got rotary size {dim}, expected 4 or more.")
    return base * stretch ** (dim / (dim - 2))


def ntk(dim: int, base: float, *, scale: float) -> Table:
    """Static NTK-aware: base b s^(R/(R-2)) (YaRN eq. 14–16; the Resonance paper's C.2 prints s b)."""
    return _theta(dim, _ntk_base(dim, base, scale)), 1.0


METHODS["ntk"] = Method(ntk, title="NTK")


def dynamic_ntk(dim: int, base: float, *, train_length: int, length: int, dynamic_factor: float) -> Table:
    """NTK by the length in use: base b (f n/L - (f-1))^(R/(R-2)) if n > L (HF `dynamic`; paper f=1)."""
    if length <= train_length:
        return default(dim, base)
    stretch = dynamic_factor * length / train_length - (dynamic_factor - 1)
    return _theta(dim, _ntk_base(dim, base, stretch)), 1.0


METHODS["dynamic_ntk"] = Method(
    dynamic_ntk,
    title="Dynamic NTK",
    options={"dynamic_factor": Option(1.0, valid=lambda factor: factor > 0, expected="positive")},
    hf_type="dynamic",
    read_from={"dynamic": RopeType(factor="dynamic_factor", longest_is_trained=True)},
    hf_habit="Its table grows with the longest call and is plain again for one under L, while cached keys "
    "keep their old phases.",
    hf_lengths="L is max_position_embeddings, {longest:,}: nothing is scaled up to there.",
)


class _ByParts(TypedDict):
    """The options that decide which dimensions are interpolated."""

    beta_fast: float
    beta_slow: float
    truncate: bool
    extrapolation_factor: float
    ramp: str


_BY_PARTS = {
    "beta_fast": Option(32.0),
    "beta_slow": Option(1.0),
    "truncate": Option(True, "switch"),
    "extrapolation_factor": Option(1.0, valid=lambda factor: 0 <= factor <= 1, expected="in [0, 1]"),
    "ramp": Option(
        "dimension",
        "name",
        valid=lambda ramp: ramp in ("dimension", "rotations"),
        expected='"dimension" (the code\'s) or "rotations"',
    ),
}


def _check_by_parts(*, beta_fast: float, beta_slow: float, **_: object) -> None:
    if not beta_fast > beta_slow > 0:
        raise ValueError(
            f"expected beta_fast > beta_slow > 0, got beta_fast={beta_fast}, beta_slow={beta_slow}."
        )


def _kept(
    dim: int,
    base: float,
    train_length: int,
    *,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
    extrapolation_factor: float,
    ramp: str,
) -> Float64[np.ndarray, "pairs"]:
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
    dim: int, base: float, *, scale: float, train_length: int, **options: Unpack[_ByParts]
) -> Table:
    """NTK-by-parts: (theta/s)(1-g) + theta g, g the kept share (YaRN Definition 2; YaRN without A)."""
    theta = _theta(dim, base)
    kept = _kept(dim, base, train_length, **options)
    return theta / scale * (1 - kept) + theta * kept, 1.0


METHODS["ntk_by_parts"] = Method(
    ntk_by_parts,
    title="NTK-by-parts",
    options=_BY_PARTS,
    check=_check_by_parts,
    hf_type="yarn",
    hf_adds={"attention_factor": 1.0},
)


class _Yarn(_ByParts):
    """The options of YaRN."""

    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None


_ATTENTION_FACTOR = Option(None, valid=lambda factor: factor > 0, expected="positive", of_scale=True)
_YARN = {
    **_BY_PARTS,
    "attention_factor": _ATTENTION_FACTOR,
    "mscale": Option(None),
    "mscale_all_dim": Option(None),
}


def _check_yarn(*, mscale: float | None, mscale_all_dim: float | None, **options: Unpack[_ByParts]) -> None:
    _check_by_parts(**options)
    if (mscale is None) != (mscale_all_dim is None):
        raise ValueError("mscale and mscale_all_dim go together (their ratio is used); give both or neither.")
    if mscale is not None and mscale_all_dim is not None and min(mscale, mscale_all_dim) <= 0:
        raise ValueError(f"mscale and mscale_all_dim must be positive, got {mscale} and {mscale_all_dim}.")


def _mscale(scale: float, weight: float) -> float:
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0


def yarn(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    attention_factor: float | None,
    mscale: float | None,
    mscale_all_dim: float | None,
    **options: Unpack[_ByParts],
) -> Table:
    """YaRN: NTK-by-parts with A = 0.1 ln s + 1 (YaRN Definition 3, as the released code and HF compute it).

    `attention_factor` replaces A; `mscale` and `mscale_all_dim` together give
    A = M(mscale)/M(mscale_all_dim), M(k) = 0.1 k ln s + 1 (DeepSeek).
    """
    theta, _ = ntk_by_parts(dim, base, scale=scale, train_length=train_length, **options)
    if attention_factor is not None:
        return theta, attention_factor
    if mscale is not None and mscale_all_dim is not None:
        return theta, _mscale(scale, mscale) / _mscale(scale, mscale_all_dim)
    return theta, _mscale(scale, 1.0)


METHODS["yarn"] = Method(
    yarn,
    title="YaRN",
    options=_YARN,
    check=_check_yarn,
    hf_type="yarn",
    read_from={
        "yarn": RopeType(
            keys=(
                "factor",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
                "finetuned",
            ),
            without_factor="lengths",
            zero_is_unset=("beta_fast", "beta_slow"),
            only_together=("mscale", "mscale_all_dim"),
        )
    },
    hf_lengths="Version 4.46 took max_position_embeddings, {longest:,}, for L.",
)


def dynamic_yarn(dim: int, base: float, *, train_length: int, length: int, **options: Unpack[_Yarn]) -> Table:
    """YaRN with s = max(1, n/L) of the length in use (YaRN section 3.3)."""
    return yarn(dim, base, scale=max(1.0, length / train_length), train_length=train_length, **options)


METHODS["dynamic_yarn"] = Method(dynamic_yarn, title="Dynamic YaRN", options=_YARN, check=_check_yarn)


def llama3(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    low_freq_factor: float,
    high_freq_factor: float,
) -> Table:
    """Llama 3: keep wavelengths under L/high, divide those over L/low by s, blend between (HF `llama3`)."""
    theta = _theta(dim, base)
    turns = train_length * theta / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return (1 - kept) * theta / scale + kept * theta, 1.0


def _check_llama3(*, low_freq_factor: float, high_freq_factor: float, **_: object) -> None:
    if not high_freq_factor > low_freq_factor > 0:
        raise ValueError(
            f"expected high_freq_factor > low_freq_factor > 0, got high_freq_factor={high_freq_factor}, "
            f"low_freq_factor={low_freq_factor}."
        )


METHODS["llama3"] = Method(
    llama3,
    title="Llama 3",
    options={"low_freq_factor": Option(1.0), "high_freq_factor": Option(4.0)},
    check=_check_llama3,
    hf_type="llama3",
    read_from={
        "llama3": RopeType(
            keys=("factor", "low_freq_factor", "high_freq_factor"),
            always_written=("low_freq_factor", "high_freq_factor"),
        )
    },
)


def longrope(
    dim: int,
    base: float,
    *,
    scale: float,
    train_length: int,
    short_factor: tuple[float, ...],
    long_factor: tuple[float, ...],
    length: int | None,
    attention_factor: float | None,
) -> Table:
    """LongRoPE: theta_j / factor_j, the long list if n > L; A = sqrt(1 + ln s / ln L) always (HF)."""
    factor = long_factor if length is not None and length > train_length else short_factor
    if attention_factor is None:
        if scale > 1 and train_length < 2:
            raise ValueError("longrope divides by ln train_length: expected at least 2, or attention_factor.")
        attention_factor = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(train_length))
    return _theta(dim, base) / np.asarray(factor, np.float64), attention_factor


def _check_longrope(*, pairs: int, short_factor: Value, long_factor: Value, **_: object) -> None:
    for name, value in (("short_factor", short_factor), ("long_factor", long_factor)):
        if not isinstance(value, tuple) or len(value) != pairs or min(value) <= 0:
            got = len(value) if isinstance(value, tuple) else "none"
            raise ValueError(f"longrope needs {name}: {pairs} positive numbers, one per pair; got {got}.")


_LONGROPE = RopeType(
    keys=("factor", "attention_factor", "short_factor", "long_factor"),
    without_factor="lengths",
    least_one=True,  # it sets the attention factor alone, which never shrinks
)
METHODS["longrope"] = Method(
    longrope,
    title="LongRoPE",
    options={
        "short_factor": Option(None, "list", of_scale=True),
        "long_factor": Option(None, "list", of_scale=True),
        "attention_factor": _ATTENTION_FACTOR,
    },
    check=_check_longrope,
    one_table=lambda short_factor, long_factor, **_: short_factor == long_factor,
    hf_type="longrope",
    read_from={"longrope": _LONGROPE, "su": _LONGROPE},
    hf_habit="It switches lists within a sequence that passes L, while cached keys keep their old phases.",
)


def proportional(dim: int, base: float, *, scale: float, partial_rotary_factor: float) -> Table:
    """Gemma 4: the first part of the pairs at full-size exponents, the rest never turn; all / s (HF)."""
    theta = _theta(dim, base) / scale
    theta[int(partial_rotary_factor * dim // 2) :] = 0.0
    return theta, 1.0


METHODS["proportional"] = Method(
    proportional,
    title="Proportional",
    hf_type="proportional",
    read_from={"proportional": RopeType(without_factor="one")},
)
