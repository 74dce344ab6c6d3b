"""Perplexity results as rows: what a result file holds, what a reader compares."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from resonance_jax.evaluate.bootstrap import paired_difference
from resonance_jax.evaluate.perplexity_result import BIN, Perplexity
from resonance_jax.rope import RopeSpec


def figures(label: str, spec: RopeSpec, by_length: Mapping[int, Perplexity]) -> list[dict[str, Any]]:
    """One row a length with everything needed to compare it: protocol, what was scored, both averages."""
    rows = []
    for length, result in sorted(by_length.items()):
        interval = result.interval()
        rows.append(
            {
                "encoding": label,
                "method": spec.method,
                "resonance": spec.resonance,
                "length": length,
                "perplexity": result.token_mean,
                "low": interval.low,
                "high": interval.high,
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


def positions(label: str, result: Perplexity) -> list[dict[str, Any]]:
    """Perplexity by position in the window, one row a bin of BIN positions in which something was scored."""
    rows = []
    for index in np.flatnonzero(result.position_scored):
        scored = int(result.position_scored[index])
        rows.append(
            {
                "encoding": label,
                "length": result.length,
                "from_position": int(index) * BIN,
                "perplexity": float(np.exp(result.position_nll[index] / scored)),
                "tokens": scored,
            }
        )
    return rows


def difference(label: str, a: Perplexity, other: str, b: Perplexity) -> dict[str, Any]:
    """NLL of a minus b in nats a token on the same windows, its 95 % interval, and what that means."""
    d = paired_difference(a.nll, b.nll, a.scored, a.document)
    verdict = "inside the noise" if not d.excludes(0) else "better" if d.value < 0 else "worse"
    return {
        "encoding": label,
        "minus": other,
        "length": a.length,
        "difference": round(d.value, 4),
        "95 % interval": f"{d.low:+.4f} … {d.high:+.4f}",
        "verdict": verdict,
    }


def table(
    rows: Iterable[Mapping[str, Any]], lengths: Iterable[int], average: str = "perplexity"
) -> list[dict]:
    """One line an encoding, one column a length, and the 95 % interval at the longest.

    average: "perplexity" (over tokens) or "window_mean".
    """
    lengths = sorted(lengths)
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["encoding"], {"encoding": row["encoding"]})
        if row["length"] in lengths:
            line[f"{row['length']:,}"] = row[average]
        if row["length"] == lengths[-1] and average == "perplexity":
            line[f"95 % at {lengths[-1]:,}"] = f"{row['low']:.4g} … {row['high']:.4g}"
    return list(lines.values())


def doubling(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first … up to last: the lengths that fit on a page."""
    lengths = [first]
    while lengths[-1] * 2 <= last:
        lengths.append(lengths[-1] * 2)
    return lengths
