"""A training run as a picture of its loss, step by step, and as a few figures."""

from collections.abc import Mapping, Sequence
from statistics import median

from resonance_jax.files import AnyPath
from resonance_jax.report.plots import new_figure, save

History = Sequence[Mapping[str, int | float]]
"""One record per logged step or evaluation (train.loop); those of steps have a "loss"."""


def loss_plot(history: History, path: AnyPath, title: str = "") -> None:
    """Write a PNG of loss and gradient norm against the step."""
    records = [record for record in history if "loss" in record]
    steps = [record["step"] for record in records]
    figure, (left, right) = new_figure(2, width=5.0, height=3.6)
    for axis, name, label in (
        (left, "loss", "loss (nats per token)"),
        (right, "grad_norm", "norm of the gradient"),
    ):
        axis.plot(steps, [record[name] for record in records], color="#0072B2", linewidth=1.4)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
    right.set_yscale("log")
    if title:
        figure.suptitle(title, fontsize=11)
    save(figure, path)


def training_summary(history: History, tokens_per_step: int) -> dict[str, float]:
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
