"""Differences between encodings over several trainings, paired by seed: the only ones that get a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np

from resonance_jax.evaluate.student import student_interval

LEARNT = 95.0
"""Accuracy (%) within the training length from which on a task counts as learnt: below it, what models do
further out tests no encoding."""
NOT_LEARNT = "not learnt: no test"


@runtime_checkable
class Scored(Protocol):
    """What has a mean NLL, in nats per token: an evaluate.Perplexity, or MeanNll."""

    @property
    def mean_nll(self) -> float: ...


@dataclass(frozen=True)
class MeanNll:
    """The mean NLL of a kept result, in nats per token."""

    mean_nll: float


Trained = Mapping[str, Sequence[Mapping[int, Scored]]]
"""By label, then by seed, then by length."""


class TrainingsRow(TypedDict):
    """One encoding minus another at one length, in nats per token, over trainings that share a seed each.

    low, high: Student's 95 % interval over the trainings, None for a single one.
    """

    encoding: str
    minus: str
    length: int
    trainings: int
    difference: float
    low: float | None
    high: float | None
    verdict: str


def difference_by_seed(trained: Trained, label: str, other: str, length: int) -> TrainingsRow:
    """`label` minus `other` at one length; both are the results of the same seeds in the same order."""
    pairs = zip(trained[label], trained[other], strict=True)
    gaps = np.array([a[length].mean_nll - b[length].mean_nll for a, b in pairs])
    low, high = ends(gaps.tolist())
    return {
        "encoding": label,
        "minus": other,
        "length": length,
        "trainings": len(gaps),
        "difference": float(gaps.mean()),
        "low": low,
        "high": high,
        "verdict": verdict(gaps.tolist()),
    }


def verdict(gaps: Sequence[float], *, more_is_better: bool = False, learnt: bool = True) -> str:
    """What the differences of some trainings allow to say.

    Args:
        gaps: one encoding minus another, by training.
        more_is_better: positive ones favour the first encoding, as of accuracies; otherwise negative ones.
        learnt: whether the models have learnt what they are asked.
    """
    sign = 1 if more_is_better else -1
    found, ahead = student_interval(gaps), sum(sign * gap > 0 for gap in gaps)
    if found is None:
        return "one training: no verdict"
    if not learnt:
        return NOT_LEARNT
    if not found.excludes(0):
        return f"not resolved (ahead in {ahead} of {len(gaps)} trainings)"
    if sign * found.value > 0:
        return f"ahead in {ahead} of {len(gaps)} trainings"
    return f"behind in {len(gaps) - ahead} of {len(gaps)} trainings"


def ends(gaps: Sequence[float]) -> tuple[float | None, float | None]:
    """Where Student's 95 % interval over the trainings begins and ends; None and None for a single one."""
    found = student_interval(gaps)
    return (None, None) if found is None else (found.low, found.high)


def interval_text(low: float | None, high: float | None, digits: int) -> str:
    """An interval of differences as a table prints it; nothing where there is none."""
    return "" if low is None or high is None else f"{low:+.{digits}f} … {high:+.{digits}f}"


def shown(row: TrainingsRow) -> dict[str, str | int]:
    """A row as a table prints it."""
    return {
        "encoding": row["encoding"],
        "minus": row["minus"],
        "trainings": row["trainings"],
        "difference": f"{row['difference']:+.4f}",
        "95 % over trainings": interval_text(row["low"], row["high"], 4),
        "verdict": row["verdict"],
    }


def mean_table(trained: Trained, lengths: Sequence[int]) -> list[dict[str, str | float]]:
    """One line per encoding: perplexity at each length, the geometric mean over the trainings."""
    lines: list[dict[str, str | float]] = []
    for label, by_seed in trained.items():
        line: dict[str, str | float] = {"encoding": label}
        for n in lengths:
            line[f"{n:,}"] = float(np.exp(np.mean([found[n].mean_nll for found in by_seed])))
        lines.append(line)
    return lines
