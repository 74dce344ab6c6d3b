"""What a training run looked like: its loss, step by step, and a few figures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from resonance_jax.report.plots import new_figure, save


def loss_plot(history: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Loss and gradient norm against the step; history: see train.run_loop. Writes a PNG."""
    records = [record for record in history if "loss" in record]
    steps = [record["step"] for record in records]
    figure, (left, right) = new_figure(2, width=5.0, height=3.6)
    for axis, name, label in (
        (left, "loss", "loss (nats a token)"),
        (right, "grad_norm", "norm of the gradient"),
    ):
        axis.plot(steps, [record[name] for record in records], color="#0072B2", linewidth=1.4)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
    right.set_yscale("log")
    if title:
        figure.suptitle(title, fontsize=11)
    save(figure, path)


def training_summary(history: Sequence[dict[str, Any]], tokens_per_step: int) -> dict[str, Any]:
    """Loss at both ends (means over a tenth of the steps), tokens seen, and the typical speed."""
    records = [record for record in history if "loss" in record]
    tenth = max(1, len(records) // 10)
    mean = lambda some: sum(record["loss"] for record in some) / len(some)
    summary = {
        "steps": len(records),
        "tokens": len(records) * tokens_per_step,
        "first loss": mean(records[:tenth]),
        "last loss": mean(records[-tenth:]),
        "tokens/s": round(median(record["tokens_per_second"] for record in records)),
    }
    if "mfu" in records[-1]:
        summary["MFU"] = median(record["mfu"] for record in records)
    return summary
