"""What Resonance changes in the keys that are found: paired by model, with a verdict over models."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from resonance_jax.evaluate import passkey
from resonance_jax.report.passkey import ModelCell
from resonance_jax.report.trainings import LEARNT, ends, interval_text, verdict

TRAINED_WITH = ("RoPE", "Resonance RoPE")


class Gap(TypedDict):
    """A Resonance encoding minus its base, in points of keys found, over models that share a seed each.

    low, high: Student's 95 % interval, None for one pair of models.
    """

    encoding: str
    minus: str
    length: int
    trainings: int
    points: float
    low: float | None
    high: float | None
    verdict: str


def learnt(cells: Sequence[ModelCell]) -> bool:
    """Whether every model finds LEARNT % at the shortest length under the table it was trained with."""
    own = [cell for cell in cells if cell["encoding"] in TRAINED_WITH]
    shortest = min((cell["length"] for cell in own), default=0)
    found = [_found(own, *key)[shortest] for key in {(cell["encoding"], cell["model"]) for cell in own}]
    return bool(found) and min(found) >= LEARNT


def differences(cells: Sequence[ModelCell]) -> list[Gap]:
    """One row per pair of encodings and length; none where no encoding is there with and without Resonance.

    cells: of every model; a seed's two models share their first weights and their texts.
    """
    task_is_learnt, table = learnt(cells), []
    for encoding in dict.fromkeys(cell["encoding"] for cell in cells):
        base = encoding.removeprefix("Resonance ")
        models = {name: [c["model"] for c in cells if c["encoding"] == name] for name in (encoding, base)}
        both = [model for model in dict.fromkeys(models[encoding]) if model in models[base]]
        if encoding == base or not both:
            continue
        ours, theirs = ([_found(cells, name, model) for model in both] for name in (encoding, base))
        for length in (n for n in ours[0] if all(n in one for one in (*ours, *theirs))):
            gaps = np.array([a[length] - b[length] for a, b in zip(ours, theirs, strict=True)])
            table.append(_row(encoding, base, length, gaps, task_is_learnt))
    return table


def _found(cells: Sequence[ModelCell], encoding: str, model: int | str) -> dict[int, float]:
    """Keys found (%) by one model under one encoding, by length."""
    own = (cell for cell in cells if cell["encoding"] == encoding and cell["model"] == model)
    return {n: 100 * right / trials for n, (right, trials) in passkey.by_length(own).items()}


def _row(encoding: str, base: str, length: int, gaps: np.ndarray, task_is_learnt: bool) -> Gap:
    low, high = ends(gaps.tolist())
    return {
        "encoding": encoding,
        "minus": base,
        "length": length,
        "trainings": len(gaps),
        "points": float(gaps.mean()),
        "low": low,
        "high": high,
        "verdict": verdict(gaps.tolist(), more_is_better=True, learnt=task_is_learnt),
    }


def shown(row: Gap) -> dict[str, str | int]:
    """A row as a table prints it."""
    return {
        "encoding": row["encoding"],
        "minus": row["minus"],
        "length": row["length"],
        "trainings": row["trainings"],
        "points": f"{row['points']:+.1f}",
        "95 % over trainings": interval_text(row["low"], row["high"], 1),
        "verdict": row["verdict"],
    }
