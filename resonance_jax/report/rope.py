"""What encodings look like: wavelengths, decay, feature gaps and angles as rows, and as pictures.

`tables` is always {label: Frequencies}; labels are RopeSpec.title, whose colours report.plots keeps.
"""

import itertools
from collections.abc import Mapping
from typing import TypedDict, TypeVar

import jax
import numpy as np
from jaxtyping import Float64

from resonance_jax import rope
from resonance_jax.files import AnyPath
from resonance_jax.report.plots import Style, colour, legend_below, mark, new_figure, save, style

Tables = Mapping[str, rope.Frequencies]
"""The encodings, by label."""

_SEEN, _UNSEEN = "#56B4E9", "#D55E00"
_BLOCK = 4096


class PairRow(TypedDict):
    """One pair: its wavelength in positions, its frequency in radians per position, its feature gap."""

    encoding: str
    pair: int
    wavelength: float
    inv_freq: float
    pre_critical: bool
    feature_gap: float


DecayRow = TypedDict("DecayRow", {"encoding": str, "from": int, "to": int, "score": float})
"""The attention score averaged over the distances from … to - 1."""


class AngleRow(TypedDict):
    """The angle of one pair at one position, in turns (0 … 1)."""

    encoding: str
    pair: int
    wavelength: float
    position: int
    seen: bool
    turns: float
    feature_gap: float


Row = TypeVar("Row", PairRow, DecayRow, AngleRow)


def pair_rows(tables: Tables, train_length: int, length: int) -> list[PairRow]:
    """One row per pair of every encoding; feature gaps up to `length`."""
    rows: list[PairRow] = []
    for label, freqs in tables.items():
        wavelength, gap = rope.wavelengths(freqs), rope.feature_gap(freqs, train_length, length)
        rows += [
            PairRow(
                encoding=label,
                pair=pair,
                wavelength=float(wavelength[pair]),
                inv_freq=float(freqs.inv_freq64[pair]),
                pre_critical=bool(wavelength[pair] <= train_length),
                feature_gap=float(gap[pair]),
            )
            for pair in range(len(gap))
        ]
    return rows


def summary(rows: list[PairRow], tables: Tables) -> list[dict[str, str | int | float | None]]:
    """One line per encoding: its critical dimension, the ends of its wavelengths, its gaps.

    rows: of pair_rows().
    """
    lines: list[dict[str, str | int | float | None]] = []
    for label, own in _by_encoding(rows).items():
        early = [row["feature_gap"] for row in own if row["pre_critical"]]
        wavelength = np.array([row["wavelength"] for row in own])
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


def decay(freqs: rope.Frequencies, length: int) -> Float64[np.ndarray, "{length}"]:
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


def decay_rows(tables: Tables, length: int, points: int = 48) -> list[DecayRow]:
    """decay() averaged over logarithmic bins of distance, one row per bin of every encoding."""
    edges = np.unique(np.geomspace(1, length, points).astype(int)).tolist()
    rows: list[DecayRow] = []
    for label, freqs in tables.items():
        score = decay(freqs, length)
        for start, stop in itertools.pairwise(edges):
            mean = float(score[start:stop].mean())
            rows.append({"encoding": label, "from": start, "to": stop, "score": mean})
    return rows


def straying_pair(freqs: rope.Frequencies, train_length: int, length: int) -> int:
    """The pair whose unseen features stray the most, of those that turn twice within the training length."""
    gap = rope.feature_gap(freqs, train_length, length)
    twice = rope.wavelengths(freqs) <= train_length / 2
    return int(np.where(twice, gap, -1.0).argmax())


def angle_rows(tables: Tables, pair: int, train_length: int, length: int) -> list[AngleRow]:
    """The angle of one pair, one row per position of every encoding.

    Raises ValueError where there is no such pair, or unless 0 < train_length < length.
    """
    rows: list[AngleRow] = []
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


def _by_encoding(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of every encoding."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["encoding"], []).append(row)
    return grouped


def wavelength_plot(rows: list[PairRow], path: AnyPath, train_length: int, length: int) -> None:
    """Write a PNG: the wavelength of every pair, the critical dimension of each encoding marked.

    rows: of pair_rows(). train_length, length: marked, in positions.
    """
    figure, (axis,) = new_figure(1, width=7.2, height=5.0)
    for label, own in _by_encoding(rows).items():
        wavelength = [row["wavelength"] for row in own]
        critical = int(sum(row["pre_critical"] for row in own))
        look = _line(label)
        name = f"{label} ({critical} of {len(own)})"
        axis.plot([row["pair"] for row in own], wavelength, label=name, **look)
        axis.plot(critical - 0.5, train_length, "D", color=colour(label), markersize=6, zorder=4)
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
    legend_below(figure, axis, 3, handlelength=3.2)
    save(figure, path)


def decay_plot(rows: list[DecayRow], path: AnyPath, train_length: int) -> None:
    """Write a PNG: attention score against distance. rows: of decay_rows()."""
    figure, (axis,) = new_figure(1, width=7.2, height=5.0)
    for label, own in _by_encoding(rows).items():
        middle = [(row["from"] * (row["to"] - 1)) ** 0.5 for row in own]
        axis.plot(middle, [row["score"] for row in own], label=label, **_line(label))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("distance m between query and key (positions; mean over each logarithmic bin)")
    axis.set_ylabel("score of equal q and k:  A² · mean over pairs of cos(m θ)")
    axis.axhline(0, color="#555555", linewidth=0.8)
    mark(axis, "training length", x=float(train_length))
    legend_below(figure, axis, handlelength=3.2)
    save(figure, path)


def gap_plot(rows: list[PairRow], path: AnyPath, train_length: int, length: int) -> None:
    """Write a PNG: the feature gap of every pair (Resonance paper eq. 8), zero included.

    rows: of pair_rows() with the same lengths, in positions.
    """
    figure, (axis,) = new_figure(1, width=7.2, height=5.0)
    smallest = 1.0
    for label, own in _by_encoding(rows).items():
        gap = np.array([row["feature_gap"] for row in own])
        smallest = min([smallest, *gap[gap > 0]])
        look = style(label) | {"marker": ".", "linewidth": 1.0}
        if label.startswith("Resonance"):
            look |= {"marker": "o", "markerfacecolor": "none", "markersize": 5}
        axis.plot([row["pair"] for row in own], gap, label=label, **look)
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
    legend_below(figure, axis, handlelength=3.2)
    save(figure, path)


def angle_plot(rows: list[AngleRow], path: AnyPath, train_length: int, length: int) -> None:
    """Write a PNG: the angles of one pair at seen and unseen positions, a circle per encoding.

    As the Resonance paper's Figure 1. rows: of angle_rows() with the same lengths; encodings without and with
    Resonance in turn, so that they stand one above the other.
    """
    grouped = _by_encoding(rows)
    deep = 2 if len(grouped) > 2 else 1
    figure, (axis,) = new_figure(1, width=max(6.0, 3.2 * len(grouped) / deep), height=0.8 + 3.0 * deep)
    for number, (label, own) in enumerate(grouped.items()):
        left, top = 2.7 * (number // deep), -2.7 * (number % deep)
        turns, seen = (np.array([row[name] for row in own]) for name in ("turns", "seen"))
        x, y = left + np.cos(2 * np.pi * turns), top + np.sin(2 * np.pi * turns)
        names = {
            "seen": f"seen: 0 … {train_length - 1:,}",
            "unseen": f"unseen: {train_length:,} … {length - 1:,}",
        }
        if number:
            names = {"seen": "", "unseen": ""}
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
    legend_below(figure, axis, 2, handlelength=3.2)
    save(figure, path)


def _line(label: str) -> Style:
    """The label's style, changed so that a resonant line shows on the plain one that it nearly covers."""
    look = style(label)
    return look | ({"zorder": 3} if label.startswith("Resonance") else {"linewidth": 3.2, "alpha": 0.5})
