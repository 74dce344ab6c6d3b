"""Integer wavelengths: periodic to the last bit, Theorem 1, and the paper's own numbers."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_jax import rope

LLAMA2 = {"head_dim": 128, "base": 10_000.0, "train_length": 4096}
POSGEN = {"head_dim": 64, "base": 10_000.0}

WAVELENGTHS_LLAMA2 = """
    6 7 8 10 11 13 15 17 20 23 26 31 35 41 47 54 63 73 84 97 112 129 149 172 199 229 265 306 353 408 471 544
    628 726 838 968 1117 1290 1490 1721 1987 2294 2650 3060 3533 4080 4712 5441 6283 7256 8379 9676 11173
    12903 14900 17206 19869 22945 26496 30597 35333 40802 47117 54410"""
WAVELENGTHS_YARN_8 = """
    6 7 8 10 11 13 15 17 20 23 26 31 35 41 47 54 63 73 84 97 112 134 160 191 230 276 332 400 484 585 710 864
    1054 1290 1584 1954 2421 3015 3779 4772 6078 7824 10206 13541 18373 25718 37694 43528 50265 58046 67030
    77405 89386 103221 119198 137648 158953 183557 211968 244777 282664 326415 376938 435281"""
WAVELENGTHS_YARN_4 = """
    6 7 8 10 11 13 15 17 20 23 26 31 35 41 47 54 63 73 84 97 112 133 158 188 225 268 320 383 459 551 662 797
    961 1161 1405 1706 2075 2532 3099 3807 4696 5820 7252 9092 11483 14632 18847 21764 25133 29023 33515
    38703 44693 51611 59599 68824 79477 91778 105984 122388 141332 163207 188469 217641"""
WAVELENGTHS_POSGEN = """
    6 8 11 15 20 26 35 47 63 84 112 149 199 265 353 471 628 838 1117 1490 1987 2650 3533 4712 6283 8379
    11173 14900 19869 26496 35333 47117"""
WAVELENGTHS_POSGEN_YARN = """
    6 8 11 15 20 26 35 47 63 84 112 198 396 1048 1397 1863 2484 3313 4418 5891 7856 10476 13970 18629 24843
    33128 44177 58911 78560 104761 139701 186294"""


jitted = jax.jit(rope.cos_sin)
row_by_row = jax.jit(jax.vmap(rope.cos_sin, in_axes=(None, 0)))


def resonant(**options):
    return rope.frequencies(rope.RopeSpec(resonance=True, **options), 32_768)


@pytest.mark.parametrize(
    ("options", "golden"),
    [
        (LLAMA2, WAVELENGTHS_LLAMA2),
        ({"method": "yarn", "scale": 8, **LLAMA2}, WAVELENGTHS_YARN_8),
        ({"method": "yarn", "scale": 4, **LLAMA2}, WAVELENGTHS_YARN_4),
        (POSGEN, WAVELENGTHS_POSGEN),
        # As the PosGen release computes it: the extended length + 1 as L, scale 257/65, beta 2/1.
        (
            {"method": "yarn", "scale": 257 / 65, "train_length": 257, "beta_fast": 2, **POSGEN},
            WAVELENGTHS_POSGEN_YARN,
        ),
    ],
    ids=["llama2", "yarn 8x", "yarn 4x", "posgen", "posgen yarn"],
)
def test_golden_wavelengths(options, golden):
    assert resonant(**options).wavelength.tolist() == [int(n) for n in golden.split()]


def test_the_papers_numbers():
    """LLaMA-2: 46 of 64 pairs are pre-critical, and together they repeat only after 7.058e51 positions."""
    for freqs in (resonant(**LLAMA2), rope.frequencies(rope.RopeSpec(**LLAMA2))):
        assert rope.critical_dimension(freqs, 4096) == 46
        assert rope.critical_dimension(freqs, 2048) == 41
    whole = resonant(**LLAMA2).wavelength.tolist()
    assert f"{math.lcm(*whole[:46]):.3e}" == "7.058e+51"
    assert [rope.critical_dimension(resonant(**LLAMA2), n) for n in (5, 6, 54_409, 54_410)] == [0, 1, 63, 64]
    assert rope.critical_dimension(resonant(**POSGEN), 64) == 9
    assert rope.critical_dimension(resonant(**POSGEN), 256) == 13
    assert rope.critical_dimension(resonant(head_dim=128, base=5e5), 8192) == 35
    for scale, length, count in [(8, 4096, 39), (8, 32_768, 46), (4, 4096, 40), (4, 16_384, 46)]:
        assert rope.critical_dimension(resonant(method="yarn", scale=scale, **LLAMA2), length) == count


def test_linear_rounds_after_scaling():
    """round(s * wavelength), not s * round(wavelength)."""
    scaled = resonant(method="linear", scale=8, **LLAMA2)
    assert scaled.wavelength[0] == 50 == round(16 * math.pi)
    assert scaled.wavelength[1] == round(8 * 2 * math.pi * 10_000 ** (2 / 128)) != 8 * 7


def test_every_method_rounds(oracle):
    for options in oracle.one_of_each(64, 1e4):
        freqs = resonant(**options)
        theta, attention = oracle.rule(rope.RopeSpec(**options), 32_768)
        expected = [round(2 * math.pi / t) if t else 0 for t in theta]
        assert freqs.wavelength.tolist() == expected
        np.testing.assert_allclose(
            freqs.inv_freq64, [2 * math.pi / n if n else 0 for n in expected], rtol=1e-15
        )
        assert float(freqs.attention_factor) == np.float32(attention)


def test_bitwise_periodic(oracle):
    """cos(p) == cos(p + k * wavelength), for every method and pair, to the last bit, up to 2^31."""
    rng = np.random.default_rng(0)
    for options in oracle.one_of_each(64, 1e4):
        freqs = resonant(**options)
        whole = np.maximum(freqs.wavelength, 1)
        near = rng.integers(0, 5000, 32)
        turns = rng.integers(1, (2**31 - 5000) // whole)
        there = row_by_row(freqs, near), row_by_row(freqs, near[:, None] + turns * whole)
        for before, after in zip(*there, strict=True):
            np.testing.assert_array_equal(before, np.diagonal(after, axis1=1, axis2=2))
        assert (freqs.wavelength > 0).any()


def test_plain_tables_are_not_periodic():
    freqs, whole = rope.frequencies(rope.RopeSpec(**LLAMA2)), resonant(**LLAMA2).wavelength[:46]
    _, sin = jitted(freqs, np.array([5, *(5 + 10 * whole)]))
    assert (sin[0, :46] != np.diagonal(sin[1:])).all()


def test_theorem_1(oracle):
    """Feature gap exactly 0 on each pre-critical pair, for every method; positive without Resonance."""
    for options in oracle.one_of_each(64, 1e4, train_length=256):
        spec = rope.RopeSpec(**options)
        plain, whole = (
            rope.frequencies(dataclasses.replace(spec, resonance=flag), 1024) for flag in (False, True)
        )
        gap, plain_gap = rope.feature_gap(whole, 256, 1024), rope.feature_gap(plain, 256, 1024)
        turning = plain.inv_freq64 > 0
        pre_critical = whole.wavelength <= 256
        assert (gap[pre_critical] == 0).all()
        assert (gap[~pre_critical] > 0).all()
        assert (plain_gap[turning] > 0).all() and (plain_gap[~turning] == 0).all()
        assert 0 < (pre_critical & turning).sum() == rope.critical_dimension(whole, 256)


def test_theorem_1_as_a_function():
    """Each unseen position has a seen twin on each pre-critical pair: the same bits, in range."""
    freqs = resonant(method="yarn", scale=8, **LLAMA2)
    unseen = np.array([4096, 5000, 32_767, 1 << 20])
    twins = rope.seen_twin(freqs, 4096, unseen)
    promised = twins >= 0
    assert (promised == (freqs.wavelength <= 4096)).all() and promised[0].sum() == 39
    assert twins.max() < 4096
    here = row_by_row(freqs, np.broadcast_to(unseen[:, None], twins.shape))
    there = row_by_row(freqs, np.maximum(twins, 0))
    for a, b in zip(here, there, strict=True):
        a, b = (np.diagonal(x, axis1=1, axis2=2) for x in (a, b))
        np.testing.assert_array_equal(a[promised], b[promised])
    plain = rope.frequencies(rope.RopeSpec(**LLAMA2))
    assert (rope.seen_twin(plain, 4096, unseen) == -1).all()


def test_golden_chord_gaps():
    """PosGen's head (64 dims, L = 64, L' = 256): the gaps of the first pairs."""
    gap = rope.feature_gap(rope.frequencies(rope.RopeSpec(**POSGEN)), 64, 256)
    np.testing.assert_allclose(
        gap[:10], [0.071, 0.080, 0.075, 0.128, 0.109, 0.008, 0.060, 0.063, 0.050, 0.758], atol=6e-4
    )
    gap = rope.feature_gap(resonant(**POSGEN), 64, 256)
    assert (gap[:9] == 0).all()
    np.testing.assert_allclose(gap[9:12], [0.731, 1.247, 1.575], atol=6e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 6.28), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_feature_gap_by_brute_force(theta, train_length, more, whole):
    freqs = rope.from_inv_freq([theta])
    freqs = rope.resonance(freqs) if whole else freqs
    points = np.exp(1j * np.arange(train_length + more) * freqs.inv_freq64[0])
    distance = np.abs(points[train_length:, None] - points[None, :train_length])
    gap = rope.feature_gap(freqs, train_length, train_length + more)
    np.testing.assert_allclose(gap, distance.min(axis=1).max(), atol=1e-12)


def test_feature_gap_refuses():
    for seen, length in [(0, 5), (5, 5), (6, 5)]:
        with pytest.raises(ValueError, match="expected 0 < train_length < length"):
            rope.feature_gap(resonant(**POSGEN), seen, length)


def test_idempotent(oracle):
    """Rounding twice is rounding once, and the function and the flag agree."""
    for base in (1e4, 1e7):
        for options in oracle.one_of_each(128, base):
            spec = rope.RopeSpec(**options)
            once = rope.resonance(rope.frequencies(spec, 32_768))
            twice = rope.resonance(once)
            for a, b, c in zip(*map(jax.tree.leaves, (once, twice, resonant(**options))), strict=True):
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(a, c)


def test_pairs_that_never_turn():
    spec = rope.RopeSpec(method="proportional", head_dim=64, partial_rotary_factor=0.25, resonance=True)
    freqs = rope.frequencies(spec)
    assert freqs.wavelength[8:].tolist() == [0] * 24 and (freqs.wavelength[:8] > 0).all()
    assert (rope.wavelengths(freqs)[8:] == np.inf).all()
    assert rope.critical_dimension(freqs, 10**9) == 8
    assert (rope.feature_gap(freqs, 64, 128)[8:] == 0).all()
    cos, sin = jitted(freqs, np.array([0, 1, 2**31 - 1]))
    assert (cos[:, 8:] == 1).all() and (sin[:, 8:] == 0).all()


def test_wavelengths_beyond_two_to_the_31():
    """Base 1e7 at 512x: the last wavelengths exceed any int32; they stay turning, without the modulo."""
    options = {"method": "linear", "head_dim": 128, "base": 1e7, "scale": 512}
    freqs = resonant(**options)
    exact = np.rint(2 * math.pi * 512 * 1e7 ** (np.arange(0, 128, 2) / 128))
    fits = exact < 2**31
    assert 0 < fits.sum() < 64
    assert (np.abs(freqs.wavelength - np.where(fits, exact, 0)) <= (exact > 2**28)).all()  # 64-bit turns
    np.testing.assert_allclose(rope.wavelengths(freqs), exact, rtol=1e-8)
    cos, sin = jitted(freqs, np.array([1 << 20]))
    np.testing.assert_allclose(cos[0], np.cos(2 * math.pi * ((1 << 20) % exact) / exact), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(2 * math.pi * ((1 << 20) % exact) / exact), atol=1e-6)


def test_wavelengths_under_one_position():
    """Whole turns between two positions can't be told from none: such a table is refused, one turn is not."""
    assert rope.resonance(rope.from_inv_freq([2 * math.pi / 1.2])).wavelength.tolist() == [1]
    with pytest.raises(ValueError, match="turn more than once between two positions"):
        rope.from_inv_freq([2 * math.pi / 0.4])
