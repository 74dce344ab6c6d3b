"""Where Resonance should help, by Theorem 1: PosGen's accuracy by position modulo each whole wavelength.

Under a resonant table a pair of whole wavelength w has at an unseen position n the very features of the seen
position n mod w; under the plain one it drifts away from them. If that is what costs accuracy, accuracy
beyond the training length differs between the residues of w.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Float64

from resonance_jax.evaluate.posgen_accuracy import Curve
from resonance_jax.evaluate.student import student_interval
from resonance_jax.files import FilePath, write_text
from resonance_jax.report.plots import blank_figure, colour, legend_below, save, style
from resonance_jax.report.posgen import Explained, Result
from resonance_jax.report.tables import csv_text


class ResidueRow(TypedDict):
    """An encoding's accuracy (%) on unseen tokens of one residue: mean over seeds with Student's interval.

    position: that at which a token is predicted (its number; [EOS] is at 0), modulo the wavelength.
    """

    task: str
    encoding: str
    wavelength: int
    residue: int
    tokens: int
    accuracy: float
    low: float | None
    high: float | None


def by_residue(
    shares: Float[np.ndarray, "seeds tokens"], first: int, train_length: int, wavelength: int
) -> Float64[np.ndarray, "seeds {wavelength}"]:
    """The mean share on unseen tokens of each residue of their number; nan where there is no such token.

    Args:
        shares: of right rows, token by token.
        first: the number of the token that the first share is of.
        train_length: L; tokens from it on are unseen.
        wavelength: in positions.
    """
    number = first + np.arange(shares.shape[1])
    unseen = number >= train_length
    groups = [unseen & (number % wavelength == residue) for residue in range(wavelength)]
    empty = np.full(len(shares), np.nan)
    return np.stack([shares[:, g].mean(axis=1) if g.any() else empty for g in groups], axis=1).astype(float)


def explained(
    shares: Float[np.ndarray, "seeds tokens"], first: int, train_length: int, wavelength: int
) -> tuple[float, float]:
    """(the share of the variance between unseen positions that lies between residues, and that by chance).

    Arguments as those of `by_residue`. 0 where nothing varies.
    """
    number = first + np.arange(shares.shape[1])
    number, unseen = number[number >= train_length], shares[:, number >= train_length].astype(float)
    means = by_residue(shares, first, train_length, wavelength)
    total = unseen.var(axis=1)
    between = means[:, number % wavelength].var(axis=1)
    ratio = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    groups = len(np.unique(number % wavelength))
    return float(ratio.mean()), (groups - 1) / max(1, len(number) - 1)


def shares_of(curves: Sequence[Curve | None]) -> Float64[np.ndarray, "seeds tokens"]:
    """The accuracy at each token of every seed that trained to the end, at its best evaluation."""
    return np.asarray([c["by_position"]["best"] for c in curves if c is not None], np.float64)


def write_residues(
    folder: FilePath,
    results: Mapping[str, Result],
    wavelengths: Sequence[int],
    first: int,
    train_length: int,
    title: str,
) -> list[Explained]:
    """Write residues.csv and residues.png into a folder; returns what the residues explain.

    Args:
        folder: of the run.
        results: by task.
        wavelengths: the whole ones of the resonant table, up to L; nothing is written where there is none.
        first: the token that is scored first.
        train_length: L.
        title: of the picture.
    """
    tasks = {
        task: {label: shares_of(c) for label, c in result["curves"].items() if any(x is not None for x in c)}
        for task, result in results.items()
    }
    tasks = {task: lines for task, lines in tasks.items() if lines}
    if not wavelengths or not tasks:
        return []
    rows, found = [], []
    for task, lines in tasks.items():
        for label, shares in lines.items():
            for wavelength in wavelengths:
                rows += _rows(task, label, shares, first, train_length, wavelength)
                between, chance = explained(shares, first, train_length, wavelength)
                one: Explained = {
                    "task": task,
                    "encoding": label,
                    "wavelength": wavelength,
                    "explained": 100 * between,
                    "chance": 100 * chance,
                }
                found.append(one)
    write_text(folder / "residues.csv", csv_text(rows))
    _draw(folder / "residues.png", tasks, wavelengths, first, train_length, title)
    return found


def _rows(
    task: str,
    label: str,
    shares: Float64[np.ndarray, "seeds tokens"],
    first: int,
    train_length: int,
    wavelength: int,
) -> list[ResidueRow]:
    number = np.arange(max(first, train_length), first + shares.shape[1])
    rows: list[ResidueRow] = []
    for residue, values in enumerate(100 * by_residue(shares, first, train_length, wavelength).T):
        tokens = int((number % wavelength == residue).sum())
        if tokens:
            interval = student_interval(values)
            rows.append(
                {
                    "task": task,
                    "encoding": label,
                    "wavelength": wavelength,
                    "residue": residue,
                    "tokens": tokens,
                    "accuracy": float(values.mean()),
                    "low": None if interval is None else interval.low,
                    "high": None if interval is None else interval.high,
                }
            )
    return rows


def _draw(
    path: FilePath,
    tasks: Mapping[str, Mapping[str, Float64[np.ndarray, "seeds tokens"]]],
    wavelengths: Sequence[int],
    first: int,
    train_length: int,
    title: str,
) -> None:
    """A row of panels per task, one per wavelength: accuracy by residue, a line per encoding."""
    figure = blank_figure(max(7.0, 1.9 * len(wavelengths)), 1.0 + 2.0 * len(tasks))
    axes = figure.subplots(len(tasks), len(wavelengths), squeeze=False, sharey="row")
    for row, (task, lines) in zip(axes, tasks.items(), strict=True):
        row[0].set_ylabel(f"{task.replace('_', '-')}\naccuracy (%)")
        for axis, wavelength in zip(row, wavelengths, strict=True):
            axis.grid(True, alpha=0.25, linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            for label, shares in lines.items():
                values = 100 * by_residue(shares, first, train_length, wavelength)
                mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
                axis.plot(np.arange(wavelength), mean, label=label, **style(label))
                band = mean - deviation, mean + deviation
                axis.fill_between(np.arange(wavelength), *band, color=colour(label), alpha=0.1, lw=0)
    for axis, wavelength in zip(axes[-1], wavelengths, strict=True):
        axis.set_xlabel(f"position mod {wavelength}", fontsize=8)
    figure.suptitle(f"{title}: accuracy beyond {train_length} tokens by position", fontsize=11)
    legend_below(figure, axes[0][0], 4, fontsize=9.0)
    save(figure, path)
