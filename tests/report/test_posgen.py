"""The paper's Table 1 beside ours."""

import csv
from pathlib import Path

import numpy as np
import pytest

from resonance_jax.report import posgen as report

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_paper_s_table_is_the_paper_s():
    with open(GOLDENS / "paper_table1.csv", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    for title, tasks in report.PAPER.items():
        assert tasks == {task: float(rows[title][task]) for task in tasks}


def curves(*oods: float, id: float = 0.9) -> list[dict]:
    """One run a value, whose best evaluation is the first of two and has that OOD accuracy (%)."""
    return [{"best": 0, "test_ood": [ood / 100, 0.5], "test_id": [id, 0.8]} for ood in oods]


def test_rows_are_means_and_deviations_beside_the_paper():
    results = {
        "cot": {
            "curves": {
                "YaRN": curves(90, 94, 98),
                "Resonance YaRN": curves(91, 96, 99),
                "NTK": curves(50, 50, 50),
            },
            "ceiling": {"id": 0.98, "ood": 1.0},
        }
    }
    rows = report.rows(results)
    best, last = rows[0], rows[3]
    assert (best["rule"], best["encoding"], best["seeds"]) == ("best", "YaRN", 3)
    assert best["ood_mean"] == pytest.approx(94) and best["ood_std"] == pytest.approx(4)
    assert best["difference"] == pytest.approx(94 - 98.71) and best["ceiling_ood"] == 100
    assert (
        last["rule"] == "last"
        and last["ood_mean"] == pytest.approx(50)
        and last["id_mean"] == pytest.approx(80)
    )
    assert rows[2]["paper_ood"] is None and rows[2]["difference"] is None
    text = report.report(rows, report.differences(results, [("Resonance YaRN", "YaRN")]), "# heading")
    assert "94.0 ± 4.0 (paper 98.71, -4.7)" in text and "| ceiling of the shortcut | 100.00 |" in text


def test_differences_are_paired_by_seed_and_say_what_the_spread_allows():
    def gap(a, b, id=0.96):
        results = {"cot": {"curves": {"A": curves(*a, id=0.96), "B": curves(*b, id=id)}, "ceiling": None}}
        return report.differences(results, [("A", "B")])[0]

    steady = gap([10, 50, 91], [9, 49, 89])  # 1, 1, 2 points: small beside the seeds, but always there
    assert steady["points"] == pytest.approx(4 / 3) and steady["verdict"] == "inside the spread"
    assert steady["high"] - steady["points"] == pytest.approx(
        4.30265 * np.std([1, 1, 2], ddof=1) / 3**0.5, rel=1e-4
    )
    assert gap([10, 50, 91], [9, 49, 90.01])["verdict"] == "better"
    assert gap([9, 49, 90], [10, 50, 91.01])["verdict"] == "worse"
    assert gap([9, 49, 90], [10, 50, 91.01], id=0.94)["verdict"] == "not learnt: no test (worse)"
    assert not report.differences({"cot": {"curves": {"A": curves(1)}, "ceiling": None}}, [("A", "B")])
