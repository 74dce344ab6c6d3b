"""Perplexity results as rows: what a result file holds, what a reader compares."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

import numpy as np
from jaxtyping import Float64

from resonance_jax.evaluate.bootstrap import Interval, paired_difference
from resonance_jax.evaluate.perplexity_result import BIN, Perplexity
from resonance_jax.evaluate.student import FEW, student_interval
from resonance_jax.rope import Specs


class FigureRow(TypedDict):
    """The perplexity of one encoding at one length, and how it was scored.

    Attributes:
        encoding, method, resonance: the encoding's label, its method, and whether Resonance is applied.
        length: positions of a window.
        perplexity: averaged over tokens.
        low, high: its 95 % interval; None for a single document.
        window_mean: the perplexity averaged over windows.
        protocol, stride, bos: how documents were cut (evaluate.windows).
        tokens, windows, documents: how many were scored.
    """

    encoding: str
    method: str
    resonance: bool
    length: int
    perplexity: float
    low: float | None
    high: float | None
    window_mean: float
    protocol: str
    stride: int | None
    bos: int | None
    tokens: int
    windows: int
    documents: int


class PositionRow(TypedDict):
    """The perplexity of the tokens in one bin of positions."""

    encoding: str
    length: int
    from_position: int
    perplexity: float
    tokens: int


DifferenceRow = TypedDict(
    "DifferenceRow",
    {
        "encoding": str,
        "minus": str,
        "length": int,
        "difference": float,
        "95 % interval": str,
        "verdict": str,
    },
)
"""One encoding minus another at one length, in nats per token."""


def figures(label: str, spec: Specs, by_length: Mapping[int, Perplexity]) -> list[FigureRow]:
    """One row per length, with everything that is needed to compare it."""
    rows: list[FigureRow] = []
    for length, result in sorted(by_length.items()):
        interval = result.interval() if result.documents > 1 else None
        rows.append(
            {
                "encoding": label,
                "method": spec.method,
                "resonance": spec.resonance,
                "length": length,
                "perplexity": result.token_mean,
                "low": None if interval is None else interval.low,
                "high": None if interval is None else interval.high,
                "window_mean": result.window_mean,
                "protocol": result.protocol,
                "stride": result.stride,
                "bos": result.bos_id,
                "tokens": result.tokens,
                "windows": result.windows,
                "documents": result.documents,
            }
        )
    return rows


def positions(label: str, result: Perplexity) -> list[PositionRow]:
    """Perplexity by position in the window: one row per bin of BIN positions in which a token was scored."""
    rows: list[PositionRow] = []
    for index in np.flatnonzero(result.position_scored).tolist():
        scored = int(result.position_scored[index])
        rows.append(
            {
                "encoding": label,
                "length": result.length,
                "from_position": index * BIN,
                "perplexity": float(np.exp(result.position_nll[index] / scored)),
                "tokens": scored,
            }
        )
    return rows


def difference(label: str, a: Perplexity, other: str, b: Perplexity) -> DifferenceRow:
    """Compare two encodings: the NLL of a minus that of b, its 95 % interval over documents, and a verdict.

    The interval is Student's for fewer than FEW documents, the bootstrap's for more; one document has none,
    and gets no verdict.

    Args:
        label, other: what people call the encoding of a, and that of b.
        a, b: their results on the same windows.
    """
    by_document = document_differences(a, b)
    found: Interval | None
    if len(by_document) < FEW:
        found = student_interval(by_document)
    else:
        found = paired_difference(a.nll, b.nll, a.scored, a.document)
    row: DifferenceRow = {
        "encoding": label,
        "minus": other,
        "length": a.length,
        "difference": round(float(by_document.mean()) if found is None else found.value, 4),
        "95 % interval": "" if found is None else f"{found.low:+.4f} … {found.high:+.4f}",
        "verdict": "one document: no verdict",
    }
    if found is not None:
        row["verdict"] = (
            "inside the noise" if not found.excludes(0) else "better" if found.value < 0 else "worse"
        )
    return row


def document_differences(a: Perplexity, b: Perplexity) -> Float64[np.ndarray, "documents"]:
    """The mean NLL per token of a minus that of b, document by document."""
    _, index = np.unique(a.document, return_inverse=True)
    return np.bincount(index, a.nll - b.nll) / np.bincount(index, a.scored)


def table(
    rows: Iterable[FigureRow], lengths: Iterable[int], average: str = "perplexity"
) -> list[dict[str, str | float]]:
    """One line per encoding and one column per length; from several documents also the 95 % interval at the
    longest.

    Args:
        rows: those of all encodings.
        lengths: which of them are shown.
        average: "perplexity" (over tokens) or "window_mean", which has no interval.
    """
    lengths = sorted(lengths)
    lines: dict[str, dict[str, str | float]] = {}
    for row in rows:
        line = lines.setdefault(row["encoding"], {"encoding": row["encoding"]})
        if row["length"] in lengths:
            line[f"{row['length']:,}"] = row["perplexity"] if average == "perplexity" else row["window_mean"]
        if row["length"] == lengths[-1] and average == "perplexity" and row["low"] is not None:
            line[f"95 % at {lengths[-1]:,}"] = f"{row['low']:.4g} … {row['high']:.4g}"
    return list(lines.values())


def doubling(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first … up to last: the lengths that fit on a page."""
    lengths = [first]
    while lengths[-1] * 2 <= last:
        lengths.append(lengths[-1] * 2)
    return lengths
