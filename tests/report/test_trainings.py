"""Differences over trainings: paired by seed, and no more said than they allow."""

import numpy as np
import pytest

from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.report.trainings import difference_by_seed, mean_table, shown, verdict


def result(nats: float, tokens: int = 10) -> Perplexity:
    """Two windows with a mean NLL of so many nats."""
    return Perplexity(
        protocol="prefix",
        length=8,
        stride=None,
        bos_id=None,
        nll=np.array([nats - 0.1, nats + 0.1]) * tokens,
        scored=np.array([tokens, tokens]),
        document=np.arange(2),
        position_nll=np.array([2 * nats * tokens]),
        position_scored=np.array([2 * tokens]),
    )


def trained(a, b):
    return {"A": [{8: result(x)} for x in a], "B": [{8: result(x)} for x in b]}


def test_seeds_are_paired():
    """Trainings differ by a nat, the encodings by a hundredth in each: paired, that is resolved."""
    base = np.array([1.0, 2.0, 3.0, 1.5])
    row = difference_by_seed(trained(base - [0.010, 0.011, 0.009, 0.010], base), "A", "B", 8)
    assert row["difference"] == pytest.approx(-0.01) and row["trainings"] == 4
    assert row["low"] < -0.01 < row["high"] < 0 and row["verdict"] == "ahead in 4 of 4 trainings"
    assert shown(row)["95 % over trainings"] == f"{row['low']:+.4f} … {row['high']:+.4f}"


def test_one_training_gets_no_verdict():
    row = difference_by_seed(trained([1.0], [2.0]), "A", "B", 8)
    assert (row["low"], row["high"], row["verdict"]) == (None, None, "one training: no verdict")
    assert shown(row)["95 % over trainings"] == ""


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        ([-1.0, 1.0, -1.0], "not resolved (ahead in 2 of 3 trainings)"),
        ([1.0, 1.1, 0.9], "behind in 3 of 3 trainings"),
        ([-1.0, -1.1, -0.9, 0.02], "not resolved (ahead in 3 of 4 trainings)"),
        ([-1.0] * 7 + [0.1], "ahead in 7 of 8 trainings"),
    ],
)
def test_the_sentence_is_what_the_interval_allows(gaps, sentence):
    assert verdict(gaps) == sentence
    assert verdict([-gap for gap in gaps], more_is_better=True) == sentence
    assert verdict(gaps, learnt=False) == "not learnt: no test"


def test_the_table_has_the_geometric_mean():
    (line, _) = mean_table(trained([1.0, 3.0], [1.0, 1.0]), [8])
    assert line["8"] == pytest.approx(np.exp(2.0))
