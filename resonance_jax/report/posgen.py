"""The paper's Table 1 beside ours: OOD accuracy on PosGen, mean and standard deviation over seeds."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Float64

from resonance_jax.evaluate.posgen_accuracy import Curve
from resonance_jax.evaluate.student import student_interval
from resonance_jax.report.tables import Rows, markdown
from resonance_jax.report.trainings import LEARNT, NOT_LEARNT

PAPER = {
    "RoPE": {"recursive": 65.29, "cot": 69.56, "semi_recursive": 17.96},
    "Resonance RoPE": {"recursive": 62.64, "cot": 75.25, "semi_recursive": 29.78},
    "YaRN": {"recursive": 95.93, "cot": 98.71, "semi_recursive": 33.70},
    "Resonance YaRN": {"recursive": 98.30, "cot": 99.58, "semi_recursive": 48.46},
}
"""Resonance RoPE, Table 1: OOD accuracy in %, mean of five runs (it prints their variance beside it)."""

RULES = {
    "best": "first evaluation at the maximum of ID accuracy (the release's rule)",
    "last": "last epoch",
}


class Result(TypedDict):
    """The result of one task.

    Attributes:
        curves: by encoding, one per seed (None: its training diverged).
        ceiling: the accuracy of the two-token shortcut, "id" and "ood" (0 … 1).
    """

    curves: dict[str, list[Curve | None]]
    ceiling: dict[str, float]


class Row(TypedDict):
    """One encoding on one task under one rule of RULES; every figure in %, deviations over seeds."""

    rule: str
    task: str
    encoding: str
    seeds: int
    ood_mean: float
    ood_std: float | None
    id_mean: float
    id_std: float | None
    paper_ood: float | None
    difference: float | None
    ceiling_ood: float
    ceiling_id: float


class Gap(TypedDict):
    """Encoding minus another in points of OOD accuracy, with a 95 % interval, ours and the paper's."""

    rule: str
    task: str
    encoding: str
    minus: str
    points: float
    low: float
    high: float
    verdict: str
    paper: float | None


class Explained(TypedDict):
    """How much of an encoding's variance between unseen positions the residues of one wavelength explain (%).

    chance: what as many groups explain of noise. Means over seeds.
    """

    task: str
    encoding: str
    wavelength: int
    explained: float
    chance: float


def percent(
    curves: Sequence[Curve], figure: Literal["test_id", "test_ood"], rule: str
) -> Float64[np.ndarray, "seeds"]:
    """An accuracy of every seed in %, at the evaluation that the rule picks."""
    return 100 * np.asarray([c[figure][c["best"] if rule == "best" else -1] for c in curves])


def spread(values: Float64[np.ndarray, "seeds"]) -> float | None:
    """The standard deviation over seeds (n - 1), None for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def rows(results: Mapping[str, Result]) -> list[Row]:
    """One row per rule, task and encoding. results: by task."""
    table: list[Row] = []
    for rule in RULES:
        for task, result in results.items():
            for title, every in result["curves"].items():
                if not (curves := [curve for curve in every if curve is not None]):
                    continue
                ood, id = percent(curves, "test_ood", rule), percent(curves, "test_id", rule)
                paper = PAPER.get(title, {}).get(task)
                table.append(
                    {
                        "rule": rule,
                        "task": task,
                        "encoding": title,
                        "seeds": len(curves),
                        "ood_mean": float(ood.mean()),
                        "ood_std": spread(ood),
                        "id_mean": float(id.mean()),
                        "id_std": spread(id),
                        "paper_ood": paper,
                        "difference": None if paper is None else float(ood.mean()) - paper,
                        "ceiling_ood": 100 * result["ceiling"]["ood"],
                        "ceiling_id": 100 * result["ceiling"]["id"],
                    }
                )
    return table


def differences(results: Mapping[str, Result], pairs: Sequence[tuple[str, str]]) -> list[Gap]:
    """Encoding a minus encoding b for each pair (a, b), paired by seed, with a 95 % t interval.

    The runs of one seed share their first weights and the order of their data. A pair that is not there, or
    has fewer than two seeds that both trained to the end, is left out. results: by task.
    """
    table: list[Gap] = []
    for rule in RULES:
        for task, result in results.items():
            for a, b in pairs:
                every = [result["curves"].get(title, []) for title in (a, b)]
                if len(every[0]) != len(every[1]):
                    continue
                both = [(x, y) for x, y in zip(*every, strict=True) if x is not None and y is not None]
                if len(both) < 2:
                    continue
                ours, other = zip(*both, strict=True)
                gap = percent(ours, "test_ood", rule) - percent(other, "test_ood", rule)
                found = student_interval(gap)
                assert found is not None  # because there are two seeds or more
                verdict = "better" if found.value > 0 else "worse"
                verdict = verdict if found.excludes(0) else "inside the spread"
                least = min(percent(curves, "test_id", rule).mean() for curves in (ours, other))
                table.append(
                    {
                        "rule": rule,
                        "task": task,
                        "encoding": a,
                        "minus": b,
                        "points": found.value,
                        "low": found.low,
                        "high": found.high,
                        "verdict": verdict if least >= LEARNT else f"{NOT_LEARNT} ({verdict})",
                        "paper": _paper_gap(a, b, task),
                    }
                )
    return table


def _paper_gap(a: str, b: str, task: str) -> float | None:
    """The same difference in the paper's table, where it has both."""
    known = a in PAPER and b in PAPER
    return PAPER[a][task] - PAPER[b][task] if known else None


def wide(table: Sequence[Row], rule: str, part: Literal["ood", "id"] = "ood") -> Rows:
    """Rows as the paper prints them: one per encoding, its tasks side by side; last, the ceiling."""
    by_encoding: dict[str, dict[str, str]] = {}
    ceiling = {"encoding": "ceiling of the shortcut"}
    for row in (row for row in table if row["rule"] == rule):
        mean, deviation, limit = (
            (row["ood_mean"], row["ood_std"], row["ceiling_ood"])
            if part == "ood"
            else (row["id_mean"], row["id_std"], row["ceiling_id"])
        )
        cell = f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
        if part == "ood" and row["paper_ood"] is not None:
            cell += f" (paper {row['paper_ood']:.2f}, {row['difference']:+.1f})"
        by_encoding.setdefault(row["encoding"], {"encoding": row["encoding"]})[row["task"]] = cell
        ceiling[row["task"]] = f"{limit:.2f}"
    return [*by_encoding.values(), ceiling]


def report(
    table: Sequence[Row], gaps: Sequence[Gap], heading: str, by_residue: Sequence[Explained] = ()
) -> str:
    """The text of table1.md: OOD accuracy under both rules, ID accuracy, and the paired differences.

    by_residue: what posgen_residues found, for a table of its own.
    """
    parts = [heading]
    for rule, meaning in RULES.items():
        parts += [f"## OOD accuracy (%), {meaning}", markdown(wide(table, rule))]
    parts += [f"## ID accuracy (%), {RULES['best']}", markdown(wide(table, "best", "id"))]
    if gaps:
        shown = [
            {
                "rule": g["rule"],
                "task": g["task"],
                "difference": f"{g['encoding']} minus {g['minus']}",
                "points": f"{g['points']:+.1f}",
                "95 % interval": f"{g['low']:+.1f} … {g['high']:+.1f}",
                "verdict": g["verdict"],
                "paper": "" if g["paper"] is None else f"{g['paper']:+.1f}",
            }
            for g in gaps
        ]
        parts += ["## Paired differences over seeds, points of OOD accuracy", markdown(shown)]
    if by_residue:
        parts += [
            "## Variance between unseen positions that lies between the residues of a wavelength (%)",
            markdown(_by_wavelength(by_residue)),
            "![accuracy by position modulo the wavelengths](residues.png)",
        ]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def _by_wavelength(rows: Sequence[Explained]) -> Rows:
    """One line per task and encoding, the wavelengths side by side; in parentheses what chance explains."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key = row["task"], row["encoding"]
        line = lines.setdefault(key, {"task": row["task"], "encoding": row["encoding"]})
        line[f"{row['wavelength']}"] = f"{row['explained']:.0f} ({row['chance']:.0f})"
    return list(lines.values())
