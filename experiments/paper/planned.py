"""What the stages of the paper take, by formulas: nothing is run or allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs import finetune, leval, perplexity
from configs.paper import Config
from experiments.paper.stages import COMPUTED, Stage, searched

if TYPE_CHECKING:
    from resonance_jax.model import DecoderConfig

SECOND_QUESTIONS = 64
"""How many questions about science fiction L-Eval's script asks a second time."""


def show_plan(config: Config, stages: list[Stage]) -> int:
    """Print each stage and its chip-hours; 1 where a fine-tuning does not fit.

    Raises ValueError without a chip whose peak is known.
    """
    from resonance_jax import model
    from resonance_jax.report.tables import print_table
    from resonance_jax.train import flops, plan

    if config.chip is None or config.devices is None:
        raise ValueError("--plan says what the stages take on chips: give --chip and --devices.")
    kind, _ = plan.chip(config.chip)
    peak = flops.peak(kind)
    if peak is None:
        raise ValueError(f"the peak of {config.chip} is not known; expected one of {', '.join(plan.CHIPS)}.")
    decoder, rows, total, fits = model.PRESETS[COMPUTED[config.model]], [], 0.0, True
    for stage in stages:
        if stage.part not in config.parts:
            continue
        work, how = _work(stage, decoder, config.chip, config.devices)
        hours = None if work is None else work / (peak * plan.EFFICIENCY) / 3600
        fits, total = fits and hours is not None, total + (hours or 0.0)
        rows.append(
            {
                "stage": f"{stage.part}: {stage.preset}",
                "how": how,
                "FLOP": "" if work is None else f"{work:.2e}",
                "chip-hours": "does not fit" if hours is None else f"{hours:,.1f}",
            }
        )
    print_table(rows, f"LLaMA-2 {config.model} on {config.devices} x {kind}")
    print(
        f"{total:,.1f} chip-hours in all. They suppose {plan.EFFICIENCY:.0%} of the dense peak, with what is "
        "recomputed: an assumption, because nothing was measured on these chips. Table 2 is an upper bound "
        "of its prefills (every document as long as allowed, read anew for every question); decoding, which "
        "reads the weights once per token, is not in it. Figure 4 and Table 2 run on one chip."
    )
    return 0 if fits else 1


def _work(stage: Stage, decoder: DecoderConfig, chip: str, devices: int) -> tuple[float | None, str]:
    """FLOPs of a stage over all devices, None where it does not fit; and how it is computed, for people."""
    if stage.part == "finetune":
        c: finetune.Config = stage.config
        chosen = searched(stage, chip, devices).chosen
        if chosen is None:
            return None, "no mesh has the memory"
        how = f"{c.steps} steps, {chosen.axes}, {chosen.micro} rows at a time, remat {chosen.remat}"
        return c.steps * chosen.plan.flops, how
    if stage.part == "figure4":
        return _figure4(stage.config, decoder)
    return _table2(stage.config, decoder)


def _figure4(c: perplexity.Config, decoder: DecoderConfig) -> tuple[float, str]:
    """One forward of the longest window per document and static encoding, one per length of a dynamic one."""
    from resonance_jax import rope

    methods = [name.partition("@")[0] for name in c.encodings]
    dynamic = [name != "own" and rope.named(name, train_length=c.train_length).dynamic for name in methods]
    lengths = [n for each in dynamic for n in (c.dynamic_lengths or c.lengths if each else [max(c.lengths)])]
    documents = c.documents * len(c.corpora)
    work = documents * sum(_forward(decoder, length) for length in lengths)
    return work, f"{documents} documents, {len(lengths)} forwards each"


def _table2(c: leval.Config, decoder: DecoderConfig) -> tuple[float, str]:
    """Every question with a document of the whole budget."""
    from resonance_jax.data import leval as data

    prompts = sum(data.TASKS[task].questions for task in c.tasks)
    prompts += SECOND_QUESTIONS if "sci_fi" in c.tasks else 0
    budget = data.document_budget(c.context)
    return prompts * _forward(decoder, budget), f"at most {prompts} prompts of {budget:,} tokens"


def _forward(decoder: DecoderConfig, length: int) -> float:
    """FLOPs of a forward pass over one sequence."""
    from resonance_jax.train import flops

    return length * flops.per_token(decoder, length) / 3
