"""Resonance minus its base in keys found: paired by model, and only where the task is learnt."""

import numpy as np
import pytest

from resonance_jax.report.passkey_differences import differences, learnt, shown


def cells(found: dict[str, dict[int, list[int]]]) -> list[dict]:
    """found: by encoding and length, keys of 10 at each of two depths together, one number a model."""
    return [
        {"encoding": encoding, "model": model, "length": length, "depth": depth, "right": half, "trials": 10}
        for encoding, by_length in found.items()
        for length, each in by_length.items()
        for model, right in enumerate(each)
        for depth, half in ((0.0, right // 2), (1.0, right - right // 2))
    ]


LEARNT = {"RoPE": {512: [20, 20, 20]}, "Resonance RoPE": {512: [20, 20, 19]}}


def test_it_is_paired_by_model_with_student_s_interval():
    gained = {"YaRN": {512: [4, 8, 12]}, "Resonance YaRN": {512: [10, 16, 16]}}
    (own, row) = differences(cells({**LEARNT, **gained}))
    assert (own["encoding"], own["verdict"]) == ("Resonance RoPE", "not resolved (ahead in 0 of 3 trainings)")
    gaps = [30.0, 40.0, 20.0]
    half = 4.30265 * np.std(gaps, ddof=1) / 3**0.5
    assert row["points"] == pytest.approx(30) and row["high"] - row["points"] == pytest.approx(half, rel=1e-4)
    assert row["verdict"] == "ahead in 3 of 3 trainings" and row["minus"] == "YaRN"
    assert shown(row)["95 % over trainings"] == f"{30 - half:+.1f} … {30 + half:+.1f}"


def test_models_that_have_not_learnt_the_task_test_nothing():
    found = {"RoPE": {512: [20, 20]}, "Resonance RoPE": {512: [20, 18]}}
    assert not learnt(cells(found)) and learnt(cells(LEARNT))
    assert [row["verdict"] for row in differences(cells(found))] == ["not learnt: no test"]


def test_one_pair_of_models_gets_no_verdict_and_no_pair_no_row():
    one = {"RoPE": {512: [20]}, "Resonance RoPE": {512: [18], 1024: [7]}}
    (row,) = differences(cells(one))  # not at a length that only one of them was asked at
    assert row["length"] == 512 and row["verdict"] == "one training: no verdict" and row["low"] is None
    assert differences(cells({"RoPE": {512: [20]}, "Resonance YaRN": {512: [20]}})) == []
