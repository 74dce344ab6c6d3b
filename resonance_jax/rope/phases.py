"""Frequencies -> cos and sin, exact at any position, and the rotation of queries and keys.

A phase is counted in turns, as a binary fraction that wraps around (the phase accumulator of signal
processing): `step`, turns per position, is a 64-bit fraction in two uint32 words; multiplied by the
integer position, the whole turns overflow away by themselves. float32 `position * inv_freq` is wrong in
cos by 2e-3 at position 32,768 and by 8e-2 at a million; this is right to 1e-6 everywhere, on hardware
without float64. A pair with an integer wavelength first takes the position modulo it, so that it is
periodic to the last bit.
"""

import dataclasses
import math
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Float64, Int, Int32, Integer, UInt32

from resonance_jax.rope.schema import Given

WORD = 2.0**32
OnHostOrDevice = Array | np.ndarray
Scalar = OnHostOrDevice | np.number


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frequencies:
    """An encoding as data: what the decoder takes. A pytree without static parts, so it can be stacked.

    Attributes:
        step: turns per position as a 64-bit fraction in two words, the high one first. The truth.
        wavelength: positions per turn where that is a whole number below 2^31, else 0.
        attention_factor: multiplies cos and sin.
    """

    __no_type_check__: ClassVar[bool] = True  # jax also builds it of what are no arrays, such as shardings

    step: UInt32[OnHostOrDevice, "*stack pairs 2"]
    wavelength: Int32[OnHostOrDevice, "*stack pairs"]
    attention_factor: Float32[Scalar, "*stack"]

    @property
    def inv_freq(self) -> Float32[Array, "*stack pairs"]:
        """Radians per position; works under jit."""
        words = jnp.asarray(self.step).astype(jnp.float32)
        return (words[..., 0] + words[..., 1] / WORD) * jnp.float32(2 * math.pi / WORD)

    @property
    def inv_freq64(self) -> Float64[np.ndarray, "*stack pairs"]:
        """Radians per position; on the host only (ValueError under jit)."""
        step, wavelength, _ = host(self, "inv_freq64")
        turns = step[..., 0] / WORD + step[..., 1] / WORD**2
        whole = np.where(wavelength > 0, wavelength, 1)
        return 2 * math.pi * np.where(wavelength > 0, 1.0 / whole, turns)


Tables: TypeAlias = Frequencies | dict[str, Frequencies]
"""One table for every layer, or one for each layer type that uses RoPE, by its name."""

FULL = "full_attention"
"""Hugging Face's name of the layer type whose queries see all keys before them."""

SLIDING = "sliding_attention"
"""Hugging Face's name of the layer type whose queries see a window of the keys before them."""


def host(
    freqs: Frequencies, caller: str
) -> tuple[
    UInt32[np.ndarray, "*stack pairs 2"], Int32[np.ndarray, "*stack pairs"], Float32[np.ndarray, "*stack"]
]:
    """step, wavelength and attention_factor as numpy arrays. Raises ValueError when given tracers."""
    leaves = (freqs.step, freqs.wavelength, freqs.attention_factor)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            f"{caller} works on the host in float64; call it outside jit and vmap, and pass its result in."
        )
    step, wavelength, attention_factor = (np.asarray(leaf) for leaf in leaves)
    return step, wavelength, attention_factor


def from_inv_freq(
    inv_freq: Float[np.ndarray, "pairs"] | list[float],
    attention_factor: Given[float] = 1.0,
    wavelength: Integer[np.ndarray, "pairs"] | list[int] | None = None,
) -> Frequencies:
    """Any table as Frequencies.

    Args:
        inv_freq: radians per position.
        attention_factor: multiplies cos and sin.
        wavelength: positions per turn; where given and positive it replaces inv_freq (2^31 positions and more
            keep a 64-bit step and lose the modulo).

    Raises:
        ValueError: for frequencies that are negative, not finite or above 2 pi (whole turns between two
            positions can't be told from none), and for an attention factor that is not positive.
    """
    inv_freq = np.asarray(inv_freq, np.float64)
    if not (np.isfinite(inv_freq).all() and (inv_freq >= 0).all()):
        raise ValueError("frequencies must be finite and not negative (radians per position).")
    if (inv_freq > 2 * math.pi).any():
        raise ValueError("frequencies must not turn more than once between two positions (at most 2 pi).")
    if not (math.isfinite(attention_factor) and attention_factor > 0):
        raise ValueError(f"the attention factor must be finite and positive, got {attention_factor}.")
    turns = inv_freq / (2 * math.pi)
    whole = np.zeros(inv_freq.shape, np.int64) if wavelength is None else np.asarray(wavelength, np.int64)
    turns = np.where(whole > 0, 1.0 / np.maximum(whole, 1), turns) % 1.0
    high = np.floor(turns * WORD)
    low = np.round((turns * WORD - high) * WORD)
    carry = low == WORD
    high, low = (high + carry) % WORD, np.where(carry, 0.0, low)
    return Frequencies(
        step=np.stack([high, low], axis=-1).astype(np.uint32),
        wavelength=np.where(whole < 2**31, whole, 0).astype(np.int32),
        attention_factor=np.float32(attention_factor),
    )


def _high_product(
    a: UInt32[OnHostOrDevice, "..."], b: UInt32[OnHostOrDevice, "..."]
) -> UInt32[OnHostOrDevice, "..."]:
    """The upper 32 bits of the 64-bit product of two uint32, in 32-bit arithmetic."""
    a0, a1 = a & 0xFFFF, a >> 16
    b0, b1 = b & 0xFFFF, b >> 16
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((a0 * b1 + (middle & 0xFFFF)) >> 16)


def _modulo(
    count: UInt32[OnHostOrDevice, "..."],
    period: UInt32[OnHostOrDevice, "..."],
    high: UInt32[OnHostOrDevice, "..."],
) -> UInt32[OnHostOrDevice, "..."]:
    """count mod period for counts up to 2^31; count where the period is 0.

    Without the division, which would cost more than all the rest: `high`, the upper word of 2^64 / period,
    gives a quotient that is right or one too small. (Period 1 gives another count: its step is 0, so any
    will do.)
    """
    rest = count - _high_product(count, high) * period
    return rest - jnp.where(rest >= period, period, jnp.uint32(0))


def _cos_sin_of_phase(
    phase: UInt32[Array, "*shape"],
) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
    """cos and sin of fractions of a turn, by quarter turns and two short Taylor series."""
    quarter = (phase + jnp.uint32(1 << 29)) >> 30
    offset = (phase - (quarter << 30)).astype(jnp.int32)  # within an eighth of a turn of its quarter
    x = offset.astype(jnp.float32) * jnp.float32(2 * math.pi / WORD)
    y = x * x
    sin = x * (1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880)))))
    cos = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320))))
    swap = (quarter & 1).astype(bool)
    cos, sin = jnp.where(swap, sin, cos), jnp.where(swap, cos, sin)
    return jnp.where((quarter == 1) | (quarter == 2), -cos, cos), jnp.where(quarter >= 2, -sin, sin)


def cos_sin(
    freqs: Frequencies,
    positions: Given[Int[OnHostOrDevice, "*positions"]],
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "*positions pairs"], Float[Array, "*positions pairs"]]:
    """Cosine and sine of every pair at integer positions, attention factor included.

    Pure; works under jit, vmap and scan.

    Args:
        freqs: one encoding.
        positions: of tokens; negative ones too.
        dtype: float32, right to 1e-6 up to 2^31 positions, or float64 (needs JAX_ENABLE_X64=1).

    Raises:
        ValueError: for positions that are not integers, and for stacked Frequencies outside vmap.
    """
    positions = jnp.asarray(positions)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f"positions must be integers (scaling belongs to the spec), got {positions.dtype}.")
    if jnp.ndim(freqs.step) != 2:
        raise ValueError("cos_sin takes one encoding; map over stacked Frequencies with jax.vmap.")
    positions = positions.astype(jnp.int32)[..., None]
    step, wavelength = jnp.asarray(freqs.step), jnp.asarray(freqs.wavelength)
    lead = (1,) * (positions.ndim - 1)  # ranks are matched by hand: promotion between ranks hides mistakes
    high, low, wavelength = (a.reshape(lead + a.shape) for a in (step[..., 0], step[..., 1], wavelength))
    count = _modulo(jnp.abs(positions).astype(jnp.uint32), wavelength.astype(jnp.uint32), high)
    if jnp.dtype(dtype) == jnp.float64:
        phase = (high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)) * count.astype(jnp.uint64)
        angle = phase.astype(jnp.int64).astype(jnp.float64) * (2 * math.pi / WORD**2)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
    else:
        cos, sin = _cos_sin_of_phase(high * count + _high_product(low, count))
    factor = jnp.asarray(freqs.attention_factor).astype(dtype)
    cos, sin = cos.astype(dtype) * factor, sin.astype(dtype) * factor
    return cos, jnp.where(positions < 0, -sin, sin)


def rotate(
    x: Float[OnHostOrDevice, "*batch T N H"],
    cos: Float[OnHostOrDevice, "*#batch T pairs"],
    sin: Float[OnHostOrDevice, "*#batch T pairs"],
    layout: str = "half",
) -> Float[Array, "*batch T N H"]:
    """Turn the pairs of queries or keys by their phases.

    Computed in float32 (float64 where x is), returned in x's dtype.

    Args:
        x: queries or keys. Dims from R on pass untouched.
        cos, sin: of each position, as cos_sin gives them.
        layout: "half" pairs dim i with i + R/2 (Hugging Face LLaMA), "interleaved" pairs 2i with 2i+1 (GPT-J,
            Meta's LLaMA, PosGen).

    Raises:
        ValueError: for another layout, and for a table wider than the head.
    """
    pairs = cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ValueError(
            f"{pairs} pairs do not fit a head of size {x.shape[-1]}; expected at most half of it."
        )
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    lead = (1,) * (x.ndim - cos.ndim - 1)  # one table for all rows when positions have no batch axis
    cos, sin = (a.reshape(lead + a.shape)[..., None, :].astype(dtype) for a in (cos, sin))
    turned, rest = x[..., : 2 * pairs].astype(dtype), x[..., 2 * pairs :]
    if layout == "half":
        a, b = turned[..., :pairs], turned[..., pairs:]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    elif layout == "interleaved":
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        raise ValueError(f'unknown rotation layout {layout!r}; expected "half" or "interleaved".')
    turned = turned.astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
