"""What encodings look like: wavelengths, decay, feature gaps and angles as rows, and as pictures.

`tables` is always {label: Frequencies}; labels are RopeSpec.title, whose colours report.plots keeps.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float64

from resonance_jax import rope
from resonance_jax.report.plots import _mark, new_figure, save, style

Tables = Mapping[str, rope.Frequencies]
Rows = list[dict[str, Any]]
"""What CSV files hold: one dictionary per row, column -> value."""

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SEEN, _UNSEEN = "#56B4E9", "#D55E00"
_BLOCK = 4096


def pair_rows(tables: Tables, train_length: int, length: int) -> Rows:
    """One row per pair: wavelength in positions, radians per position, feature gap up to `length`."""
    rows = []
    for label, freqs in tables.items():
        wavelength, gap = rope.wavelengths(freqs), rope.feature_gap(freqs, train_length, length)
        rows += [
            {
                "encoding": label,
                "pair": pair,
                "wavelength": float(wavelength[pair]),
                "inv_freq": float(freqs.inv_freq64[pair]),
                "pre_critical": bool(wavelength[pair] <= train_length),
                "feature_gap": float(gap[pair]),
            }
            for pair in range(len(gap))
        ]
    return rows


def summary(rows: Rows, tables: Tables) -> Rows:
    """One row per encoding, made of pair_rows(): critical dimension, ends of its wavelengths, gaps."""
    lines = []
    for label, own in _of(rows).items():
        early = [row["feature_gap"] for row in own if row["pre_critical"]]
        wavelength = _column(own, "wavelength")
        turning = wavelength[np.isfinite(wavelength)]
        lines.append(
            {
                "encoding": label,
                "pairs": len(own),
                "critical dimension": len(early),
                "shortest wavelength": float(turning.min()),
                "longest wavelength": float(turning.max()),
                "largest gap before it": max(early, default=None),
                "largest gap": max(row["feature_gap"] for row in own),
                "attention factor": float(tables[label].attention_factor),
            }
        )
    return lines


def decay(freqs: rope.Frequencies, length: int) -> Float64[np.ndarray, "length"]:
    """The attention score of equal queries and keys at distances 0 … length-1, as a share of |q||k|.

    A² · mean over pairs of cos(m theta_j): what q · k becomes, in expectation, for a random q = k whose size
    is spread evenly over the pairs (RoFormer section 3.4.3 bounds the same sum; A is YaRN's factor).
    """
    score = np.empty(length)
    table = jax.jit(rope.cos_sin)
    for start in range(0, length, _BLOCK):
        # One shape for every block: one compilation.
        cos, _ = table(freqs, start + np.arange(_BLOCK, dtype=np.int32))
        mean = np.asarray(cos, np.float64).mean(axis=1)
        score[start : start + _BLOCK] = mean[: length - start]
    return score * float(freqs.attention_factor)


def decay_rows(tables: Tables, length: int, points: int = 48) -> Rows:
    """decay() averaged over logarithmic bins of distance [from, to), one row per bin."""
    edges = np.unique(np.geomspace(1, length, points).astype(int))
    rows = []
    for label, freqs in tables.items():
        score = decay(freqs, length)
        for start, stop in itertools.pairwise(edges):
            mean = float(score[start:stop].mean())
            rows.append({"encoding": label, "from": int(start), "to": int(stop), "score": mean})
    return rows


def straying_pair(freqs: rope.Frequencies, train_length: int, length: int) -> int:
    """The pair whose unseen features stray the most, of those that turn twice within the training length."""
    gap = rope.feature_gap(freqs, train_length, length)
    twice = rope.wavelengths(freqs) <= train_length / 2
    return int(np.where(twice, gap, -1.0).argmax())


def angle_rows(tables: Tables, pair: int, train_length: int, length: int) -> Rows:
    """The angle of one pair at every position (in turns, 0 to 1), one row per position.

    Raises ValueError where there is no such pair, or unless 0 < train_length < length.
    """
    rows = []
    for label, freqs in tables.items():
        wavelength = rope.wavelengths(freqs)
        if not 0 <= pair < len(wavelength):
            raise ValueError(f"there is no pair {pair}; {label} has pairs 0 to {len(wavelength) - 1}.")
        gap = float(rope.feature_gap(freqs, train_length, length)[pair])
        for position in range(length):
            rows.append(
                {
                    "encoding": label,
                    "pair": pair,
                    "wavelength": float(wavelength[pair]),
                    "position": position,
                    "seen": position < train_length,
                    "turns": float(np.fmod(position, wavelength[pair]) / wavelength[pair]),
                    "feature_gap": gap,
                }
            )
    return rows


def _of(rows: Rows) -> dict[str, Rows]:
    grouped: dict[str, Rows] = {}
    for row in rows:
        grouped.setdefault(row["encoding"], []).append(row)
    return grouped


def _column(rows: Rows, name: str) -> Float64[np.ndarray, "rows"]:
    return np.asarray([row[name] for row in rows], np.float64)


def wavelength_plot(rows: Rows, path: str | Path, train_length: int, length: int) -> None:
    """Wavelength of every pair, the critical dimension of each encoding marked; rows: pair_rows(). A PNG."""
    figure, (axis,) = new_figure(1, width=7.2, height=5.0)
    for label, own in _of(rows).items():
        wavelength = _column(own, "wavelength")
        critical = int(sum(row["pre_critical"] for row in own))
        look = _line(label)
        name = f"{label} ({critical} of {len(own)})"
        axis.plot(_column(own, "pair"), wavelength, label=name, **look)
        axis.plot(critical - 0.5, train_length, "D", color=look["color"], markersize=6, zorder=4)
    for positions, name in ((train_length, "training length"), (length, "longest length")):
        axis.axhline(positions, color="#555555", linewidth=1, linestyle=":")
        text = {"xytext": (0, 3), "textcoords": "offset points", "fontsize": 8, "color": "#555555"}
        where = {"xycoords": ("axes fraction", "data")}
        axis.annotate(f"{name} {positions:,}", (0.01, positions), **where, **text)
    axis.set_yscale("log")
    axis.set_xlabel(
        "pair, fastest first  (◆ critical dimension: so many pairs turn within the training length)"
    )
    axis.set_ylabel("wavelength (positions per turn)")
    _legend(figure, axis, 3)
    save(figure, path)


def decay_plot(rows: Rows, path: str | Path, train_length: int) -> None:
    """Attention score against distance; rows: decay_rows(). Writes a PNG."""
    figure, (axis,) = new_figure(1, width=7.2, height=5.0)
    for label, own in _of(rows).items():
        middle = np.sqrt(_column(own, "from") * (_column(own, "to") - 1))
        axis.plot(middle, _column(own, "score"), label=label, **_line(label))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("distance m between query and key (positions; mean over each logarithmic bin)")
    axis.set_ylabel("score of equal q and k:  A² · mean over pairs of cos(m θ)")
    axis.axhline(0, color="#555555", linewidth=0.8)
    _mark(axis, "training length", x=train_length)
    _legend(figure, axis, 4)
    save(figure, path)


def gap_plot(rows: Rows, path: str | Path, train_length: int, length: int) -> None:
    """Feature gap of every pair (Resonance paper eq. 8), zero included; rows: pair_rows(). Writes a PNG."""
    figure, (axis,) = new_figure(1, width=7.2, height=5.0)
    smallest = 1.0
    for label, own in _of(rows).items():
        gap = _column(own, "feature_gap")
        smallest = min([smallest, *gap[gap > 0]])
        look = {**style(label), "marker": "o" if label.startswith("Resonance") else ".", "linewidth": 1.0}
        if label.startswith("Resonance"):
            look |= {"markerfacecolor": "none", "markersize": 5}
        axis.plot(_column(own, "pair"), gap, label=label, **look)
    lowest = 10.0 ** np.floor(np.log10(smallest))
    axis.set_yscale("symlog", linthresh=lowest, linscale=0.5)
    ticks = 10.0 ** np.arange(np.log10(lowest), 1)
    axis.set_yticks([0, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axis.set_ylim(-0.15 * lowest, 2.6)
    axis.set_xlabel("pair, fastest first")
    axis.set_ylabel("feature gap (chord of the unit circle, at most 2)")
    axis.set_title(
        f"How far positions {train_length:,} … {length - 1:,} stray from every feature of the first "
        f"{train_length:,}",
        fontsize=10,
    )
    _legend(figure, axis, 4)
    save(figure, path)


def angle_plot(rows: Rows, path: str | Path, train_length: int, length: int) -> None:
    """Angles of one pair at seen and unseen positions, one circle per encoding (the paper's Figure 1).

    rows: angle_rows(), without and with Resonance in turn: they stand one above the other. Writes a PNG.
    """
    grouped = _of(rows)
    deep = 2 if len(grouped) > 2 else 1
    figure, (axis,) = new_figure(1, width=max(6.0, 3.2 * len(grouped) / deep), height=0.8 + 3.0 * deep)
    for number, (label, own) in enumerate(grouped.items()):
        left, top = 2.7 * (number // deep), -2.7 * (number % deep)
        turns, seen = _column(own, "turns"), _column(own, "seen").astype(bool)
        x, y = left + np.cos(2 * np.pi * turns), top + np.sin(2 * np.pi * turns)
        names = {
            "seen": f"seen: 0 … {train_length - 1:,}",
            "unseen": f"unseen: {train_length:,} … {length - 1:,}",
        }
        if number:
            names = dict.fromkeys(names)
        axis.plot(x[seen], y[seen], "o", color=_SEEN, markersize=7, label=names["seen"])
        axis.plot(x[~seen], y[~seen], "x", color=_UNSEEN, markersize=4, label=names["unseen"])
        gap = own[0]["feature_gap"]
        stray = "no gap" if gap == 0 else f"largest gap {gap:.3f}"
        text = f"{label}\nwavelength {own[0]['wavelength']:,.6g}\n{stray}"
        axis.text(left, top, text, ha="center", va="center", fontsize=9)
    axis.set_aspect("equal")
    axis.grid(False)
    axis.set_axis_off()
    figure.suptitle(f"Rotation angles of pair {rows[0]['pair']}", fontsize=11)
    _legend(figure, axis, 2)
    save(figure, path)


def _line(label: str) -> dict[str, Any]:
    """The label's style, so that a resonant line shows on the plain one that it nearly covers."""
    look = style(label)
    return look | ({"zorder": 3} if label.startswith("Resonance") else {"linewidth": 3.2, "alpha": 0.5})


def _legend(figure: "Figure", axis: "Axes", columns: int) -> None:
    style: dict[str, Any] = {"fontsize": 8, "frameon": False, "handlelength": 3.2}
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, **style)
