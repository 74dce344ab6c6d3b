"""The picture of a parity check is drawn whatever the numbers are."""

import math

import pytest

from resonance_jax.interop.parity_result import Parity, Tap
from resonance_jax.report.parity import parity_plot


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("other", [1e-12, 0.0, None])
def test_an_error_that_is_no_number_is_left_blank(tmp_path, bad, other):
    """An overflow in one tensor, or in every one: the picture shows where it begins."""
    errors = (bad, bad if other is None else other)
    taps = [
        Tap("YaRN", 16, "float64", "highest", f"layer {i} q", max(errors), 1.0, 1e-9, True, errors)
        for i in range(2)
    ]
    parity_plot(Parity(taps, []), tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
