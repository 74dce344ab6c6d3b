"""Student's interval: the tables of the distribution, its coverage, and no interval of one value."""

import numpy as np
import pytest

from resonance_jax.evaluate.student import student_interval


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062047), (3, 4.3026527), (5, 2.7764451), (8, 2.3646243)])
def test_the_half_width_is_the_tabulated_quantile_of_standard_errors(n, quantile):
    values = np.arange(n, dtype=float) ** 2
    found = student_interval(values)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(quantile * values.std(ddof=1) / n**0.5, rel=1e-5)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_it_covers_the_mean_19_times_in_20():
    draws = np.random.default_rng(0).normal(1.0, 2.0, (4000, 3))
    covered = np.mean([not student_interval(row).excludes(1.0) for row in draws])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_one_value_has_no_interval_and_none_is_refused():
    assert student_interval([1.0]) is None
    with pytest.raises(ValueError, match="at least one value"):
        student_interval([])
