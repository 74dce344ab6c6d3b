"""What the pictures of encodings show, against formulas."""

import itertools
import math

import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.report import rope as pictures


def tables(head_dim=64, train_length=64, scale=4.0, methods=("default", "yarn")) -> dict:
    specs = [
        rope.RopeSpec(
            method,
            head_dim=head_dim,
            train_length=train_length,
            resonance=resonance,
            **({"scale": scale} if method == "yarn" else {}),
        )
        for method in methods
        for resonance in (False, True)
    ]
    return {spec.title: rope.frequencies(spec) for spec in specs}


def of(rows, label, name):
    return np.asarray([row[name] for row in rows if row["encoding"] == label])


def test_pairs_are_the_papers():
    """Wavelengths by formula; gaps and the critical dimension at PosGen's lengths as worked out by hand."""
    rows = pictures.pair_rows(tables(), 64, 256)
    exact = 2 * math.pi * 10_000.0 ** (np.arange(32) / 32)
    np.testing.assert_allclose(of(rows, "RoPE", "wavelength"), exact, rtol=1e-14)
    np.testing.assert_array_equal(of(rows, "Resonance RoPE", "wavelength"), np.rint(exact))
    np.testing.assert_allclose(of(rows, "RoPE", "inv_freq"), 2 * math.pi / exact, rtol=1e-14)
    by_hand = [0.071, 0.080, 0.075, 0.128, 0.109, 0.008, 0.060, 0.063, 0.050, 0.758]
    np.testing.assert_allclose(of(rows, "RoPE", "feature_gap")[:10], by_hand, atol=5e-4)
    resonant = of(rows, "Resonance RoPE", "feature_gap")
    assert (resonant[:9] == 0).all()
    np.testing.assert_allclose(resonant[9:12], [0.731, 1.247, 1.575], atol=5e-4)
    lines = {line["encoding"]: line for line in pictures.summary(rows, tables())}
    assert lines["RoPE"]["critical dimension"] == 9
    assert lines["RoPE"]["largest gap before it"] == of(rows, "RoPE", "feature_gap")[:9].max()
    assert lines["Resonance RoPE"]["largest gap before it"] == 0
    assert lines["YaRN"]["attention factor"] == np.float32(0.1 * math.log(4) + 1)


def test_pairs_that_never_turn_have_no_largest_wavelength():
    freqs = rope.frequencies(rope.RopeSpec("proportional", head_dim=16, partial_rotary_factor=0.5))
    (line,) = pictures.summary(pictures.pair_rows({"P": freqs}, 32, 64), {"P": freqs})
    assert line["longest wavelength"] == pytest.approx(2 * math.pi * 10_000 ** (6 / 16))


@pytest.mark.parametrize("length", [3, 5000])
def test_decay_is_the_mean_of_cosines(length):
    for label, freqs in tables(128, 1024).items():
        factor = 0.1 * math.log(4.0) + 1 if "YaRN" in label else 1.0
        exact = factor**2 * np.cos(np.arange(length)[:, None] * freqs.inv_freq64).mean(axis=1)
        np.testing.assert_allclose(pictures.decay(freqs, length), exact, atol=5e-7)


def test_decay_rows_average_every_distance_once():
    freqs = tables()["YaRN"]
    rows = pictures.decay_rows({"YaRN": freqs}, 700)
    assert (rows[0]["from"], rows[-1]["to"]) == (1, 700)
    assert all(a["to"] == b["from"] for a, b in itertools.pairwise(rows))
    total = sum((row["to"] - row["from"]) * row["score"] for row in rows)
    assert total == pytest.approx(pictures.decay(freqs, 700)[1:].sum(), rel=1e-12)


def test_angles_of_unseen_positions_are_seen_ones_under_resonance():
    rows = pictures.angle_rows(tables(methods=("default",)), 3, 64, 128)
    turns = {label: of(rows, label, "turns") for label in ("RoPE", "Resonance RoPE")}
    exact = np.arange(128) * 10_000.0 ** (-3 / 32) / (2 * math.pi)
    np.testing.assert_allclose(turns["RoPE"], exact % 1.0, atol=1e-13)
    seen = of(rows, "RoPE", "seen")
    assert seen.sum() == 64 and seen[:64].all()
    for label, contained in (("RoPE", False), ("Resonance RoPE", True)):
        assert (set(turns[label][~seen]) <= set(turns[label][seen])) == contained
    assert {row["feature_gap"] for row in rows if row["encoding"] == "Resonance RoPE"} == {0.0}


def test_the_pair_that_strays_most():
    """Of d = 64 at 64 positions: pair 3, 0.128 of the circle's radius, among the seven that turn twice."""
    assert pictures.straying_pair(tables()["RoPE"], 64, 256) == 3


def test_a_pair_that_is_not_there():
    with pytest.raises(ValueError, match="no pair 32; RoPE has pairs 0 to 31"):
        pictures.angle_rows(tables(), 32, 64, 128)
