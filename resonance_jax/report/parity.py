"""A parity check as rows and as a picture: where do two programs part?"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resonance_jax.interop.parity_check import PARTS, Parity, Tap
from resonance_jax.report.plots import new_figure, save


def rows(parity: Parity) -> list[dict[str, Any]]:
    """Every tensor, one a row."""
    hidden = ("by_position",)
    return [{k: v for k, v in dataclasses.asdict(tap).items() if k not in hidden} for tap in parity.taps]


def summary(parity: Parity) -> list[dict[str, Any]]:
    """One row an encoding, length, dtype and precision: the worst tensor of each kind."""
    groups: dict[tuple, list[Tap]] = {}
    for tap in parity.taps:
        groups.setdefault((tap.encoding, tap.length, tap.dtype), []).append(tap)
    lines = []
    for (encoding, length, dtype), taps in groups.items():
        for precision in sorted({tap.precision for tap in taps} - {"-"}, reverse=True) or ["-"]:
            own = [tap for tap in taps if tap.precision in (precision, "-")]
            worst = lambda kind, own=own: max((t.error for t in own if kind in t.name), default=None)
            inside = [t.error for t in own if t.name.startswith(("embedding", "layer", "norm"))]
            decided = any(t.tolerance is not None and t.precision == precision for t in own)
            verdict = "wrong" if any(t.wrong for t in own) else "equal" if decided else "not decided"
            lines.append(
                {
                    "encoding": encoding,
                    "positions": length,
                    "dtype": dtype,
                    "matmuls": precision,
                    "inv_freq": worst("inv_freq"),
                    "layers": max(inside, default=None),
                    "logits": worst("logits"),
                    "loss": worst("loss"),
                    "gradients": worst("gradient"),
                    "verdict": verdict,
                }
            )
    if all(line["gradients"] is None for line in lines):
        for line in lines:
            del line["gradients"]
    return lines


def phase_rows(parity: Parity) -> list[dict[str, Any]]:
    """What PyTorch's own float32 phases lose, one row an encoding and length."""
    return [
        {
            "encoding": p.encoding,
            "positions": p.length,
            "frequencies": p.source,
            "cos, sin off by": p.cos_sin,
            "logits off by": p.logits,
        }
        for p in parity.phases
    ]


def parity_plot(parity: Parity, path: str | Path) -> None:
    """Errors by layer and position, a panel a dtype (float64 first): the first encoding, the longest length.

    Rows are the tensors from the embedding down to the logits. Writes a PNG.
    """
    from matplotlib.colors import LogNorm

    first = parity.taps[0].encoding
    longest = max(tap.length for tap in parity.taps)
    chosen = [t for t in parity.taps if t.encoding == first and t.length == longest and t.by_position]
    chosen = [t for t in chosen if t.precision == "highest"]
    dtypes = list(dict.fromkeys(tap.dtype for tap in chosen))
    names = [tap.name for tap in chosen if tap.dtype == dtypes[0]]
    figure, axes = new_figure(len(dtypes), width=4.8, height=max(3.4, 0.16 * len(names) + 1.6))
    for axis, dtype in zip(axes, dtypes, strict=True):
        errors = np.array([tap.by_position for tap in chosen if tap.dtype == dtype])
        floor = 1e-18 if dtype == "float64" else 1e-9
        image = axis.imshow(
            np.maximum(errors, floor),
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            norm=LogNorm(floor, max(float(np.nanmax(errors)), 10 * floor)),
            extent=(0, longest, len(names) - 0.5, -0.5),
        )
        axis.set_title(dtype, fontsize=10)
        axis.set_xlabel("position")
        axis.grid(False)
        step = max(1, len(PARTS) * len(names) // 200)
        shown = range(0, len(names), step)
        axis.set_yticks(list(shown), [names[i] for i in shown] if axis is axes[0] else [], fontsize=7)
        figure.colorbar(image, ax=axis, label="largest difference", shrink=0.9)
    figure.suptitle(f"ours against PyTorch, tensor by tensor: {first}, {longest:,} positions", fontsize=11)
    save(figure, path)
