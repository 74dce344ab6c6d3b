"""Passkey results: rows, a table with a line per encoding, and heat maps."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from resonance_jax.evaluate import passkey
from resonance_jax.evaluate.binomial import wilson
from resonance_jax.files import AnyPath
from resonance_jax.report.plots import blank_figure, save


class ModelCell(passkey.Cell):
    """A cell, the label of its encoding, and which model was asked (its seed, or the checkpoint's name)."""

    encoding: str
    model: int | str


class Row(TypedDict):
    """The keys found over all models at one depth of one length, with Wilson's 95 % interval."""

    encoding: str
    template: str
    length: int
    depth: float
    prompt_tokens: int
    models: int
    trials: int
    right: int
    share: float
    low: float
    high: float


def rows(cells: Sequence[ModelCell]) -> list[Row]:
    """One row per encoding, length and depth."""
    grouped: dict[tuple[str, int, float], list[ModelCell]] = {}
    for cell in cells:
        grouped.setdefault((cell["encoding"], cell["length"], cell["depth"]), []).append(cell)
    table: list[Row] = []
    for (encoding, length, depth), same in sorted(grouped.items(), key=lambda item: item[0][1:]):
        right, trials = sum(cell["right"] for cell in same), sum(cell["trials"] for cell in same)
        interval = wilson(right, trials)
        table.append(
            {
                "encoding": encoding,
                "template": same[0]["template"],
                "length": length,
                "depth": depth,
                "prompt_tokens": same[0]["prompt_tokens"],
                "models": len(same),
                "trials": trials,
                "right": right,
                "share": right / trials,
                "low": interval.low,
                "high": interval.high,
            }
        )
    order = list(dict.fromkeys(cell["encoding"] for cell in cells))
    return sorted(table, key=lambda row: order.index(row["encoding"]))


def table(cells: Sequence[ModelCell]) -> list[dict[str, str | int | None]]:
    """One line per encoding: keys found (%) at every length over all depths, and how far that reaches.

    The models' lowest and highest stand in parentheses, the longest length with at least 80 % at the end.
    """
    lines: list[dict[str, str | int | None]] = []
    for encoding in dict.fromkeys(cell["encoding"] for cell in cells):
        own = [cell for cell in cells if cell["encoding"] == encoding]
        by_model = [
            passkey.by_length(cell for cell in own if cell["model"] == model)
            for model in dict.fromkeys(cell["model"] for cell in own)
        ]
        line: dict[str, str | int | None] = {"encoding": encoding}
        for length, (right, trials) in passkey.by_length(own).items():
            each = [100 * one[length][0] / one[length][1] for one in by_model if length in one]
            spread = f" ({min(each):.0f} … {max(each):.0f})" if len(each) > 1 else ""
            line[f"{length:,}"] = f"{100 * right / trials:.0f}{spread}"
        line["at least 80 %"] = passkey.reach(own)
        lines.append(line)
    return lines


def heat_map(table: Sequence[Row], path: AnyPath, title: str) -> None:
    """Write a PNG: the share of keys found, depth against length, a panel per encoding.

    Resonance encodings come last; when there are as many of them as of others, each stands below its base.

    Args:
        table: what `rows` gives.
        path: of the PNG.
        title: above the panels.
    """

    def resonant(encoding: str) -> bool:
        return encoding.startswith("Resonance ")

    encodings = sorted(dict.fromkeys(row["encoding"] for row in table), key=resonant)
    half = len(encodings) // 2
    columns = half if 2 * sum(map(resonant, encodings)) == len(encodings) and half <= 6 else 4
    lengths = sorted({row["length"] for row in table})
    depths = sorted({row["depth"] for row in table})
    columns = min(columns, len(encodings))
    panels = math.ceil(len(encodings) / columns)
    width, height = max(2.4, 0.6 * len(lengths) + 0.3), 0.34 * len(depths) + 0.7
    figure = blank_figure(width * columns + 1.2, height * panels + 0.9)
    axes = figure.subplots(panels, columns, squeeze=False)
    for axis in axes.flat[len(encodings) :]:
        axis.set_visible(False)
    images = []
    for index, (axis, encoding) in enumerate(zip(axes.flat, encodings, strict=False)):
        shares = np.full((len(depths), len(lengths)), np.nan)
        for row in table:
            if row["encoding"] == encoding:
                shares[depths.index(row["depth"]), lengths.index(row["length"])] = 100 * row["share"]
        images.append(axis.imshow(shares, vmin=0, vmax=100, cmap="viridis", aspect="auto"))
        for (y, x), share in np.ndenumerate(shares):
            if np.isfinite(share):
                colour = "black" if share > 60 else "white"
                axis.text(x, y, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=8)
        axis.set_title(encoding, fontsize=9)
        axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        if index % columns == 0:
            axis.set_ylabel("depth of the key", fontsize=9)
        if index + columns >= len(encodings):
            axis.set_xlabel("prompt (tokens)", fontsize=9)
    bar = figure.colorbar(images[0], ax=axes.ravel().tolist(), fraction=0.03, pad=0.01)
    bar.set_label("keys found (%)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    save(figure, path)
