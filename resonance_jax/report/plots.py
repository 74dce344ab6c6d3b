"""Pictures: readable labels, colours that survive colour blindness, one idea a panel."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from resonance_jax.evaluate.perplexity import BIN, Perplexity
from resonance_jax.files import atomic

# Okabe and Ito's palette, dark enough for lines on white; a method keeps its colour everywhere.
COLOURS = {
    "RoPE": "#000000",
    "Linear": "#CC79A7",
    "NTK": "#009E73",
    "Dynamic NTK": "#E69F00",
    "NTK-by-parts": "#56B4E9",
    "YaRN": "#0072B2",
    "Dynamic YaRN": "#D55E00",
    "Llama 3": "#882255",
    "LongRoPE": "#999933",
    "Proportional": "#777777",
}


def style(label: str) -> dict:
    """Line style of a label: colour by method, dashed for Resonance, a marker for what was done to it."""
    method = label.split(",")[0].removeprefix("Resonance ")
    return {
        "color": COLOURS.get(method, "#777777"),
        "linestyle": "--" if label.startswith("Resonance") else "-",
        "marker": "o" if "fine-tuned" in label else "x" if "swapped" in label else None,
        "markersize": 4,
        "linewidth": 1.6,
    }


def new_figure(panels: int, width: float = 6.0, height: float = 4.4):
    """A row of panels, drawn without a display: (figure, axes)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, panels))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25, linewidth=0.6)
    return figure, axes


def save(figure, path: str | Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def perplexity_plot(
    results: Mapping[str, Mapping[int, Perplexity]],
    path: str | Path,
    train_length: int | None = None,
    title: str = "",
    unit: str = "token",
) -> None:
    """Perplexity against length (left), and by position at the longest length (right), one line a row.

    results: label -> {length: Perplexity}, as evaluate.sweep gives them. Writes a PNG.
    """
    figure, (left, right) = new_figure(2, width=6.2, height=5.0)
    for label, by_length in results.items():
        lengths = sorted(by_length)
        left.plot(lengths, [by_length[n].token_mean for n in lengths], label=label, **style(label))
        longest = by_length[lengths[-1]]
        some = longest.position_scored > 0
        mean = np.exp(longest.position_nll[some] / longest.position_scored[some])
        centre = (np.flatnonzero(some) + 0.5) * BIN
        right.plot(centre, mean, **{**style(label), "marker": None})
    left.set_xlabel(f"context length ({unit}s)")
    right.set_xlabel(f"position in the context ({unit}s), bins of {BIN}")
    left.set_ylabel(f"perplexity per {unit}, to that length")
    right.set_ylabel(f"perplexity per {unit}, at that position")
    for axis in (left, right):
        _log_scale(axis)
        _mark_training_length(axis, train_length)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    save(figure, path)


def perplexity_panels(
    results: Mapping[str, Mapping[str, Mapping[int, Perplexity]]],
    path: str | Path,
    train_length: int | None = None,
) -> None:
    """Perplexity against length, one panel a corpus, one line an encoding (the paper's Figure 4)."""
    figure, axes = new_figure(len(results), width=5.6, height=4.6)
    for axis, (corpus, by_label) in zip(axes, results.items(), strict=True):
        for label, by_length in by_label.items():
            lengths = sorted(by_length)
            axis.plot(lengths, [by_length[n].token_mean for n in lengths], label=label, **style(label))
        axis.set_title(corpus, fontsize=10)
        axis.set_xlabel("context length (tokens)")
        axis.set_ylabel("perplexity per token")
        _log_scale(axis)
        _mark_training_length(axis, train_length)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save(figure, path)


def _log_scale(axis) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")


def _mark_training_length(axis, train_length: int | None) -> None:
    if train_length is None:
        return
    axis.axvline(train_length, color="#555555", linewidth=1, linestyle=":")
    axis.annotate(
        "training length",
        (train_length, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color="#555555",
    )
