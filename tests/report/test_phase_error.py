"""The report on phases: its oracle in fifty digits, and each way of computing redone in numpy."""

import decimal

import ml_dtypes
import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.report import phase_error

PI = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
TABLES = {
    spec.title: rope.frequencies(spec)
    for spec in (
        rope.RopeSpec(head_dim=64),
        rope.RopeSpec("yarn", head_dim=64, scale=8.0, train_length=4096, resonance=True),
    )
}
POSITIONS = [256, 32_768, 2**20]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return phase_error.phase_error_rows(TABLES, POSITIONS)


def test_the_oracle_in_fifty_digits():
    positions = np.asarray([0, 1, 255, 32_767, 2**20 - 1, 2**20])
    for freqs in TABLES.values():
        cos, sin = phase_error.exact_cos_sin(freqs, positions)
        for pair in (0, 1, 7, 20, 31):
            wavelength = int(freqs.wavelength[pair])
            with decimal.localcontext(prec=50):
                theta = 2 * PI / wavelength if wavelength else decimal.Decimal(float(freqs.inv_freq64[pair]))
                angles = [float(int(p) * theta % (2 * PI)) for p in positions]
            np.testing.assert_allclose(cos[:, pair], np.cos(angles), rtol=0, atol=3e-10)
            np.testing.assert_allclose(sin[:, pair], np.sin(angles), rtol=0, atol=3e-10)


def test_ours_is_right_everywhere(rows):
    exact = [row for row in rows if row["way"] == "exact"]
    assert len(exact) == len(TABLES) * len(POSITIONS)
    assert max(max(row["cos_error"], row["sin_error"]) for row in exact) < 1e-6


def in_numpy(way: str, freqs, positions: np.ndarray) -> np.ndarray:
    """Angles as the way rounds them."""
    inv_freq, positions = freqs.inv_freq64.astype(np.float32), positions.astype(np.float32)[:, None]
    if way == "float32 product":
        return positions * inv_freq
    return (positions.astype(ml_dtypes.bfloat16) * inv_freq.astype(ml_dtypes.bfloat16)).astype(np.float32)


@pytest.mark.parametrize("way", ["float32 product", "bfloat16 product"])
def test_products_lose_what_numpy_says(rows, way):
    for row in rows:
        if row["way"] != way:
            continue
        positions = np.arange(row["position"] - 256, row["position"])
        freqs = TABLES[row["encoding"]]
        angle = in_numpy(way, freqs, positions).astype(np.float64)
        exact = phase_error.exact_cos_sin(freqs, positions)
        for name, lost, true in zip(("cos", "sin"), (np.cos(angle), np.sin(angle)), exact, strict=True):
            assert row[f"{name}_error"] == pytest.approx(np.abs(lost - true).max(), abs=1e-6)


def test_the_product_loses_what_the_readme_says(rows):
    error = {
        row["position"]: row["cos_error"]
        for row in rows
        if row["way"] == "float32 product" and "Resonance" in row["encoding"]
    }
    assert 1e-3 < error[32_768] < 4e-3 and 4e-2 < error[2**20] < 2e-1


def test_the_attention_factor_is_no_error():
    freqs = TABLES["Resonance YaRN"]
    assert freqs.attention_factor > 1.2
    cos, sin = phase_error.exact_cos_sin(freqs, np.arange(5))
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-15)


def test_the_table(rows):
    lines = phase_error.table(rows, [256, 2**20])
    assert len(lines) == 3 * len(TABLES)
    assert list(lines[0]) == ["way", "backend", "encoding", "256", "1,048,576"]


def test_positions_double():
    assert phase_error.doubling_positions(1000) == [256, 512]
    assert phase_error.doubling_positions(2**20)[-1] == 2**20
    assert len(phase_error.doubling_positions(2**20)) == 13
    for wrong in (255, 2**31):
        with pytest.raises(ValueError, match="must be from 256"):
            phase_error.doubling_positions(wrong)
