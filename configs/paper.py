"""The paper's LLaMA-2 experiments as one command: four fine-tunings of a size, then Figure 4 and Table 2.

Command:   python -m experiments.paper --model 7b --checkpoint PATH --corpus PATH --leval FOLDER
           … --plan --chip v5p --devices 8 first says what each stage takes, and needs none of the paths
           PATH of --checkpoint is LLaMA2-Chat; --corpus is PG19 in chunks of tokens (docs/tpu.md)
Hardware:  7b: 8 chips of v5p, 16 of v6e or 64 of v5e; 13b: 16 of v5p or 32 of v6e, by the plan
Time:      --plan says chip-hours by stage, under an assumption that it states
Expected:  the paper's Figure 4 and Table 2. Neither was run where this was written: LLaMA-2's weights, PG19,
           the corpora of Figure 4 and L-Eval's data are not available there. All stages were run on a model
           of random weights, whose figures mean nothing.
"""

import dataclasses
from typing import Literal

PARTS = ("finetune", "figure4", "table2")


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune the four settings of a size, draw Figure 4, fill in Table 2; resumable stage by stage."""

    model: Literal["7b", "13b"] = "7b"
    """Which size of LLaMA2-Chat."""
    checkpoint: str = ""
    """Its Hugging Face directory, from which every fine-tuning starts."""
    corpus: str = ""
    """The text of the fine-tunings, as experiments.finetune takes it."""
    corpora: tuple[str, ...] = ("scrolls/gov_report", "proof-pile.jsonl")
    """The corpora of Figure 4, as experiments.perplexity takes them."""
    data_dir: str | None = None
    """Where prepared TFDS datasets lie."""
    leval: str = ""
    """The folder with L-Eval's jsonl files."""
    parts: tuple[Literal["finetune", "figure4", "table2"], ...] = PARTS
    """Which parts are run now; each goes on from what the ones before it left in the run folder."""
    chip: str | None = None
    """The chip that is here (v5e, v5p, v6e, …). With --devices each fine-tuning gets the mesh, the rows at a
    time and the recomputation that its plan finds; default: those of the presets."""
    devices: int | None = None
    """How many chips the fine-tunings run on."""
    finetune: tuple[str, ...] = ()
    """More options for every fine-tuning, each NAME=VALUE."""
    figure4: tuple[str, ...] = ()
    """The same for Figure 4, as experiments.perplexity has them."""
    table2: tuple[str, ...] = ()
    """The same for every row of Table 2, as experiments.leval has them."""
    plan: bool = False
    """Only print the stages, and what each takes on --devices of --chip (exit code 1: one does not fit)."""
    run_dir: str | None = None
    """Where results go; default runs/paper-<hash of this config>."""


ELSEWHERE = ("parts", "chip", "devices", "plan")
"""Options that say where and how much is computed now; they may change when a run goes on."""
