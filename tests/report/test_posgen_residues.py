"""Accuracy by position modulo a wavelength, and how much of its variance that explains."""

import numpy as np
import pytest

from resonance_jax.report.posgen_residues import by_residue, explained, write_residues

FIRST, L, LENGTH = 4, 20, 83


def shares(of):
    """Two seeds; `of` gives the share at each token, and the seeds are not equal."""
    number = np.arange(FIRST, LENGTH)
    return np.stack([of(number), 0.5 * of(number)])


def test_every_residue_has_the_mean_of_its_unseen_tokens():
    noise = np.random.default_rng(0).random((2, LENGTH - FIRST))
    found = by_residue(noise, FIRST, L, 7)
    for seed in range(2):
        for residue in range(7):
            own = [noise[seed, n - FIRST] for n in range(L, LENGTH) if n % 7 == residue]
            assert found[seed, residue] == pytest.approx(np.mean(own), abs=1e-15)
    assert np.isnan(by_residue(noise, FIRST, LENGTH - 2, 7)[0]).sum() == 5


def test_a_period_is_explained_by_its_residues_and_by_no_others():
    periodic = shares(lambda n: 0.2 + 0.1 * (n % 5))
    assert explained(periodic, FIRST, L, 5) == (pytest.approx(1.0), 4 / 62)
    between, chance = explained(periodic, FIRST, L, 6)
    assert between < 2 * chance
    assert explained(shares(lambda n: np.full(len(n), 0.5)), FIRST, L, 5)[0] == 0.0
    # What is seen does not count.
    assert explained(np.where(np.arange(FIRST, LENGTH) < L, 9.0, periodic), FIRST, L, 5)[0] == pytest.approx(
        1
    )


def test_noise_is_explained_as_chance_says():
    noise = np.random.default_rng(1).random((400, LENGTH - FIRST))
    between, chance = explained(noise, FIRST, L, 8)
    assert between == pytest.approx(chance, rel=0.1)


def test_nothing_is_written_where_no_table_is_resonant(tmp_path):
    assert write_residues(tmp_path, {"cot": {"curves": {}, "ceiling": {}}}, [], FIRST, L, "") == []
    assert not list(tmp_path.iterdir())
