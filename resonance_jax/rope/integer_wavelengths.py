"""Resonance RoPE (Wang et al. 2024): integer wavelengths, and what they do to unseen positions.

Rounding every wavelength to a whole number of positions makes each pair that turns fully within the
training length repeat, on unseen positions, exactly the features it was trained on (Theorem 1). It is a
transform of frequencies, so it composes with every method; it comes after scaling.
"""

import math

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt64

from resonance_jax.rope.phases import Frequencies, from_inv_freq, host


def resonance(freqs: Frequencies) -> Frequencies:
    """The same table with every wavelength rounded to the nearest whole position (paper Algorithm 1).

    Half-way cases go to even. A pair stays as it is where it never turns, or so slowly (2^53 positions) that
    float64 has no fractions to round away; the attention factor is kept. On the host (ValueError under jit).
    """
    theta = freqs.inv_freq64
    turning = theta > 0
    whole = np.rint(2 * math.pi / np.where(turning, theta, 1.0))
    whole = np.where(turning & (whole < 2.0**53), whole, 0).astype(np.int64)
    return from_inv_freq(theta, float(freqs.attention_factor), whole)


def wavelengths(freqs: Frequencies) -> Float64[np.ndarray, "pairs"]:
    """Positions per turn: the integer one where there is one, infinity where a pair never turns."""
    _, wavelength, _ = host(freqs, "wavelengths")
    with np.errstate(divide="ignore"):
        return np.where(wavelength > 0, wavelength, 2 * math.pi / freqs.inv_freq64)


def critical_dimension(freqs: Frequencies, train_length: int) -> int:
    """How many pairs make a full turn within the training length (wavelength <= L): the pre-critical ones.

    Paper section 4; 46 of LLaMA-2's 64 at L = 4096. On the host.
    """
    return int((wavelengths(freqs) <= train_length).sum())


def _phases(freqs: Frequencies, positions: Int64[np.ndarray, "P"]) -> UInt64[np.ndarray, "P pairs"]:
    """Exact fractions of a turn at non-negative positions; equal features are equal integers."""
    step, wavelength, _ = host(freqs, "feature_gap")
    fraction = step[:, 0].astype(np.uint64) << np.uint64(32) | step[:, 1].astype(np.uint64)
    count = positions[:, None]
    count = np.where(wavelength > 0, count % np.maximum(wavelength, 1), count)
    return fraction * count.astype(np.uint64)


def feature_gap(freqs: Frequencies, train_length: int, length: int) -> Float64[np.ndarray, "pairs"]:
    """How far each pair strays, on unseen positions, from every feature it was trained on.

    Chord distance between points of the unit circle (0 to 2):
    max over n in [L, L') of min over m in [0, L) |e^(i m theta) - e^(i n theta)| (paper eq. 8, with the
    maximum over n that Theorem 1 speaks of; without the attention factor). Exactly 0 on every pre-critical
    pair of a resonant table. On the host.

    Args:
        freqs: the table.
        train_length: L; positions below it are seen.
        length: L'; positions from L up to it are unseen.

    Raises:
        ValueError: unless 0 < train_length < length.
    """
    if not 0 < train_length < length:
        raise ValueError(
            f"feature_gap compares unseen positions with seen ones: expected 0 < train_length < length, "
            f"got train_length={train_length}, length={length}."
        )
    phases = _phases(freqs, np.arange(length, dtype=np.int64))
    gaps = np.empty(phases.shape[1])
    for pair, phase in enumerate(phases.T):
        seen, unseen = np.sort(phase[:train_length]), phase[train_length:]
        after = np.searchsorted(seen, unseen) % train_length
        # uint64 differences wrap around the circle by themselves.
        nearest = np.minimum(seen[after] - unseen, unseen - seen[after - 1]).astype(np.float64)
        gaps[pair] = 2 * np.sin(math.pi * nearest.max() / 2.0**64)
    return gaps


def seen_twin(
    freqs: Frequencies, train_length: int, positions: Integer[np.ndarray, "P"]
) -> Int64[np.ndarray, "P pairs"]:
    """Theorem 1 as a function: a seen position with the same feature, per unseen position and pair.

    m = n mod wavelength < L where the pair is pre-critical with an integer wavelength, -1 where the theorem
    promises nothing. cos_sin at m and n agrees to the last bit.

    Args:
        freqs: the table.
        train_length: L; positions below it are seen.
        positions: the unseen positions n.
    """
    _, wavelength, _ = host(freqs, "seen_twin")
    promised = (wavelength > 0) & (wavelength <= train_length)
    positions = np.asarray(positions, np.int64)[:, None]
    return np.where(promised, positions % np.maximum(wavelength, 1), -1)
