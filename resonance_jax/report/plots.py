"""Pictures: readable labels, colours that survive colour blindness, one idea per panel."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from jaxtyping import Float

from resonance_jax.evaluate.perplexity_result import BIN, Perplexity
from resonance_jax.evaluate.student import student_interval
from resonance_jax.files import AnyPath, atomic
from resonance_jax.report.labels import FINETUNED, SWAPPED
from resonance_jax.report.trainings import Trained

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


class Style(TypedDict, total=False):
    """Keyword arguments of a matplotlib line."""

    color: str
    linestyle: str
    linewidth: float
    marker: str | None
    markersize: float
    markerfacecolor: str
    markevery: tuple[int, int]
    alpha: float
    zorder: float


Sweeps = Mapping[str, Mapping[int, Perplexity]]
"""label -> {length: Perplexity}, as evaluate.sweep gives them."""
Panels = Mapping[str, Mapping[str, Float[np.ndarray, "seeds points"]]]
"""task -> label -> one line per seed."""

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


def colour(label: str) -> str:
    """The colour of a label's method."""
    return COLOURS.get(label.split(",")[0].removeprefix("Resonance "), "#777777")


def style(label: str) -> Style:
    """Line style of a label: colour by method, dashed for Resonance, a marker for a changed model."""
    return {
        "color": colour(label),
        "linestyle": "--" if label.startswith("Resonance") else "-",
        "marker": "o" if FINETUNED in label else "x" if SWAPPED in label else None,
        "markersize": 4,
        "linewidth": 1.6,
    }


def blank_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """A figure of a size in inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(
    panels: int, width: float = 6.0, height: float = 4.4
) -> "tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]":
    """A row of panels of a size in inches: (figure, axes)."""
    figure = blank_figure(width * panels, height)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25, linewidth=0.6)
    return figure, axes


def save(figure: "matplotlib.figure.Figure", path: AnyPath) -> None:
    """Write a figure as a PNG, whole or not at all; names in it are shown letter by letter."""
    _take_literally(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _take_literally(figure: "matplotlib.figure.Figure") -> None:
    """Let no text of a figure be read as a formula, except the numbers that matplotlib puts at its ticks."""
    from matplotlib.text import Text

    ticks = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for text in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if id(text) not in ticks:
            text.set_parse_math(False)


def perplexity_plot(
    results: Sweeps,
    path: AnyPath,
    train_length: int | None = None,
    title: str = "",
    unit: str = "token",
    positions: int = BIN,
) -> None:
    """Write a PNG: perplexity against length (left), and by position at the longest length (right).

    Args:
        results: one line per label.
        path: of the PNG.
        train_length: marked where it is known, in positions.
        title: above the panels.
        unit: what a token is, for the axes.
        positions: how many make one point of the right panel, a multiple of BIN.
    """
    figure, (left, right) = new_figure(2, width=6.2, height=5.0)
    for label, by_length in results.items():
        lengths = sorted(by_length)
        drawn = style(label)
        if len(lengths) == 1:
            drawn["marker"] = "o"
        left.plot(lengths, [by_length[n].token_mean for n in lengths], label=label, **drawn)
        longest = by_length[lengths[-1]]
        starts = np.arange(0, len(longest.position_nll), positions // BIN)
        nll, scored = (np.add.reduceat(x, starts) for x in (longest.position_nll, longest.position_scored))
        some = scored >= positions // 2  # a few tokens at the end are no mean
        centre = (starts[some] * BIN) + positions / 2
        right.plot(centre, np.exp(nll[some] / scored[some]), **(style(label) | {"marker": None}))
    left.set_xlabel(f"context length ({unit}s)")
    right.set_xlabel(f"position in the context ({unit}s), bins of {positions:,}")
    left.set_ylabel(f"perplexity per {unit}, to that length")
    right.set_ylabel(f"perplexity per {unit}, at that position")
    for axis in (left, right):
        _log_scale(axis)
        _mark_training_length(axis, train_length)
    _mark_lengths(left, results)
    legend_below(figure, left)
    if title:
        figure.suptitle(title, fontsize=11)
    save(figure, path)


def perplexity_panels(results: Mapping[str, Sweeps], path: AnyPath, train_length: int | None = None) -> None:
    """Write a PNG: perplexity against length, a panel per corpus, a line per label (the paper's Figure 4)."""
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
        _mark_lengths(axis, by_label)
    legend_below(figure, axes[0])
    save(figure, path)


def trainings_plot(
    trained: Trained,
    path: AnyPath,
    pairs: Sequence[tuple[str, str]],
    train_length: int | None = None,
    title: str = "",
    unit: str = "byte",
) -> None:
    """Write a PNG: perplexity per unit against length (left), differences of pairs of encodings (right).

    With several trainings a line is their geometric mean, a band is one standard deviation either side; the
    bars of a difference are its 95 % interval.

    Args:
        trained: by label, then by training, then by length.
        path: of the PNG.
        pairs: (a, b): a minus b is drawn, in nats.
        train_length: marked where it is known, in positions.
        title: above the panels.
        unit: what a position holds, "byte" or "token".
    """
    figure, (left, right) = new_figure(2, width=6.2, height=5.0)
    nats = {
        label: np.array([[r.mean_nll for r in one.values()] for one in every])
        for label, every in trained.items()
    }
    lengths = np.array(sorted(next(iter(trained.values()))[0]))
    for label, values in nats.items():
        mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
        left.plot(lengths, np.exp(mean), label=label, **style(label))
        if len(values) > 1:
            band = np.exp(mean - deviation), np.exp(mean + deviation)
            left.fill_between(lengths, *band, color=colour(label), alpha=0.12, lw=0)
    for i, (a, b) in enumerate(pairs):
        gaps = nats[a] - nats[b]
        intervals = [student_interval(column) for column in gaps.T]
        half = [0.0 if found is None else found.high - found.value for found in intervals]
        drawn = {"color": colour(b), "marker": "x" if SWAPPED in a else "o", "markersize": 4}
        nudge = (i - len(pairs) / 2) * (lengths[-1] - lengths[0]) / (30 * len(lengths))
        right.errorbar(lengths + nudge, gaps.mean(axis=0), half, lw=1.2, capsize=2, label=a, **drawn)
    right.axhline(0, color="#555555", linewidth=1)
    left.set_ylabel(f"perplexity per {unit}, to that length")
    right.set_ylabel(f"Resonance minus its base, nats per {unit}")
    for axis in (left, right):
        axis.set_xlabel(f"context length ({unit}s)")
        _mark_training_length(axis, train_length)
    _log_scale(left)
    legend_below(figure, left)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _mark_lengths(axis: "matplotlib.axes.Axes", results: Sweeps) -> None:
    """Put ticks at the lengths that were measured, thinned out to at most nine."""
    lengths = sorted({length for by_length in results.values() for length in by_length})
    step = -(-len(lengths) // 9)
    axis.set_xticks(lengths[::-1][::step], [f"{length:,}" for length in lengths[::-1][::step]])


def legend_below(
    figure: "matplotlib.figure.Figure",
    axis: "matplotlib.axes.Axes",
    columns: int = 4,
    fontsize: float = 8.0,
    handlelength: float = 3.6,
) -> None:
    """One legend of one panel's lines below all panels, its lines long enough to tell dashes from markers."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=fontsize,
        frameon=False,
        handlelength=handlelength,
    )


def _log_scale(axis: "matplotlib.axes.Axes") -> None:
    """A logarithmic vertical axis with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")


def _mark_training_length(axis: "matplotlib.axes.Axes", train_length: int | None) -> None:
    """A vertical line at the training length, where it is known."""
    if train_length is not None:
        mark(axis, "training length", x=float(train_length))


def mark(axis: "matplotlib.axes.Axes", text: str, x: float | None = None, y: float | None = None) -> None:
    """A dotted line at x or at y, with its name."""
    line = {"color": "#555555", "linewidth": 1, "linestyle": ":"}
    name = {"textcoords": "offset points", "fontsize": 8, "color": "#555555"}
    if x is not None:
        axis.axvline(x, **line)
        axis.annotate(text, (x, 0.99), xycoords=("data", "axes fraction"), xytext=(4, 0), va="top", **name)
    if y is not None:
        axis.axhline(y, **line)
        axis.annotate(text, (0.99, y), xycoords=("axes fraction", "data"), xytext=(0, 3), ha="right", **name)


def _band(
    axis: "matplotlib.axes.Axes",
    x: Float[np.ndarray, "points"],
    values: Float[np.ndarray, "seeds points"],
    label: str,
    most: float = np.inf,
) -> None:
    """The mean over seeds as a line, one standard deviation either side as a band up to `most`."""
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
    axis.plot(x, mean, label=label, **style(label))
    high = np.minimum(mean + deviation, most)
    axis.fill_between(x, mean - deviation, high, color=colour(label), alpha=0.12, lw=0)


def _by_task(panels: Panels, title: str) -> "tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]":
    """A panel per task, under a common title: (figure, axes)."""
    figure, axes = new_figure(len(panels), width=4.6, height=4.4)
    for axis, task in zip(axes, panels, strict=True):
        axis.set_title(task.replace("_", "-"), fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure, axes


def accuracy_by_position_plot(
    panels: Panels,
    path: AnyPath,
    first: int,
    train_length: int,
    ceilings: Mapping[str, tuple[float, float]],
    title: str = "",
    smooth: int = 4,
) -> None:
    """Write a PNG: PosGen's accuracy at each token, a panel per task, a line per label with its spread.

    Args:
        panels: shares of right rows, a point per token.
        path: of the PNG.
        first: the token that the first point is of.
        train_length: marked, in tokens.
        ceilings: by task, ID and OOD accuracy of the two-token shortcut.
        title: above the panels.
        smooth: tokens averaged into one point.
    """
    figure, axes = _by_task(panels, title)
    for axis, (task, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            points = values.shape[1] // smooth
            means = values[:, : points * smooth].reshape(len(values), points, smooth).mean(axis=2)
            _band(axis, first + (np.arange(points) + 0.5) * smooth, 100 * means, label, most=100.0)
        _mark_training_length(axis, train_length)
        mark(axis, "ceiling of the two-token shortcut", y=100 * ceilings[task][1])
        axis.set_xlabel(f"token of the sequence, {smooth} to a point")
        axis.set_ylim(0, 108)
    axes[0].set_ylabel("accuracy (%), mean ± s.d. over seeds")
    legend_below(figure, axes[0], min(4, 2 * len(panels)), fontsize=10.0, handlelength=2.0)
    save(figure, path)


def validation_loss_plot(
    panels: Panels, path: AnyPath, epochs: Float[np.ndarray, "evaluations"], title: str = ""
) -> None:
    """Write a PNG: validation loss against epochs (the Resonance paper's Figure 3), a panel per task.

    Args:
        panels: losses in nats per token, a point per evaluation.
        path: of the PNG.
        epochs: when each evaluation was.
        title: above the panels.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _by_task(panels, title)
    for axis, lines in zip(axes, panels.values(), strict=True):
        for label, values in lines.items():
            _band(axis, epochs, values, label)
        axis.set_xlabel("epoch")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("validation loss (nats), mean ± s.d.")
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    legend_below(figure, axes[0], min(4, 2 * len(panels)), fontsize=10.0, handlelength=2.0)
    save(figure, path)
