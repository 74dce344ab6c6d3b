"""A parity check as rows and as a picture, which show where two programs part."""

import dataclasses

import numpy as np

from resonance_jax.files import AnyPath
from resonance_jax.interop.parity_result import PARTS, Parity, Tap
from resonance_jax.report.plots import new_figure, save

Row = dict[str, str | int | float | None]


def rows(parity: Parity) -> list[Row]:
    """One row per tensor, without its errors by position."""
    shown = [field.name for field in dataclasses.fields(Tap) if field.name != "by_position"]
    return [{name: getattr(tap, name) for name in shown} for tap in parity.taps]


def summary(parity: Parity) -> list[Row]:
    """One row per encoding, length, dtype and precision: the worst tensor of each kind."""
    groups: dict[tuple[str, int, str], list[Tap]] = {}
    for tap in parity.taps:
        groups.setdefault((tap.encoding, tap.length, tap.dtype), []).append(tap)
    lines: list[Row] = []
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


def phase_rows(parity: Parity) -> list[Row]:
    """What PyTorch's own float32 phases lose, one row per encoding and length."""
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


def parity_plot(parity: Parity, path: AnyPath) -> None:
    """Write a PNG: errors by tensor and position, a panel per dtype.

    Shown are the first encoding and the longest length, tensors from the embedding down to the logits.
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
        errors[~np.isfinite(errors)] = np.nan  # drawn blank: no number has a colour
        floor = 1e-18 if dtype == "float64" else 1e-9
        image = axis.imshow(
            np.maximum(errors, floor),
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            norm=LogNorm(floor, max([10 * floor, *errors[np.isfinite(errors)].tolist()])),
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
