"""L-Eval's six closed-ended tasks: the paper's Table 2 for any checkpoint.

Command:   python -m experiments.leval any --checkpoint PATH --data FOLDER --context 16k
           python -m experiments.leval 7b-short-resonance --checkpoint PATH --data FOLDER
           python -m experiments.leval score FOLDER/*.pred.jsonl
           FOLDER holds L-Eval's coursera.jsonl, gsm100.jsonl, quality.jsonl, tpo.jsonl, codeU.jsonl and
           sci_fi.jsonl (github.com/OpenLMLab/LEval, LEval-data/Closed-ended-tasks; GPL-3.0)
Hardware:  7B in bfloat16 at 32k: one 80 GB accelerator
Time:      897 questions and 64 second ones, each a prefill of up to 32k tokens and up to 512 new ones
Expected:  the row of Table 2 that a preset names is printed beside ours. None was run where this was
           written: LLaMA-2's weights and L-Eval's data are not available there. The paper's document
           budgets and its dynamic NTK's s are not known; here both are those of L-Eval's script.
"""

import dataclasses
from typing import ClassVar, Literal

import tyro

from resonance_jax.settings.precision import Precision


@dataclasses.dataclass(frozen=True)
class Config:
    """Score one checkpoint under one encoding; resumable question by question."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision", "tensor")

    checkpoint: str = ""
    """A Hugging Face directory, a GGUF file, or the name of a packaged checkpoint (smollm2-135m)."""
    data: str = ""
    """The folder with L-Eval's jsonl files."""
    tasks: tuple[str, ...] = ("coursera", "gsm100", "quality", "tpo", "codeU", "sci_fi")
    """Which tasks, by the names of their files."""
    encoding: str = "own"
    """"own" is what the checkpoint's config states; or a method, with an optional "resonance-" in front."""
    scale: float | None = None
    """The scale (the paper's s) of static methods; default: the checkpoint's own for its own method,
    otherwise what takes L to --length."""
    train_length: int | None = None
    """Positions of the training (the paper's L); default: what the checkpoint's config states."""
    context: str = "32k"
    """L-Eval's context: a document may have so many tokens (k = 1,000) less 512."""
    length: int | None = None
    """Positions that the encoding is declared for; default: what the longest prompt of the run and its new
    tokens need, so that every question is asked. With fewer, questions that do not fit are left out, and
    named."""
    dynamic_scale: str = "ceil"
    """How a dynamic encoding's s follows a prompt of n tokens: "ceil" is the benchmark's script, (n + new
    tokens) / L rounded up, and plain RoPE for n up to L; "exact" does not round."""
    max_new_tokens: int = 512
    """The most tokens that an answer may have."""
    gsm_new_tokens: int | None = None
    """The same for gsm100, whose answers reason before they say a number; default: --max-new-tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer; L-Eval has none, only the EOS."""
    chat: Literal["leval", "own"] = "leval"
    """The frame of a prompt: "leval" is the benchmark's, with LLaMA-2's marks; "own" is the checkpoint's chat
    template, with the same words in it."""
    paper: str | None = None
    """The row of Table 2 to compare with, by its preset's name."""
    name: str | None = None
    """What predictions are filed under; default: the checkpoint's folder and the context."""
    limit: int | None = None
    """Only the first so many questions of each task."""
    batch_size: int = 1
    """How many questions are asked at once, where they are asked under the same table."""
    tokenizer: str | None = None
    """"bytes", a tokenizer.json, a tokenizer.model, or a directory; default: the checkpoint's own."""
    bos: str = "auto"
    """What stands in front of every prompt: auto (what the tokenizer really puts there), none, or a token's
    id."""
    dtype: str = "auto"
    """Dtype of weights and activations; auto: bfloat16 where this device multiplies it faster, else
    float32."""
    precision: Precision = "auto"
    """How exactly a TPU or GPU multiplies float32 numbers, by JAX's names; auto: float32 if --dtype is."""
    tensor: int = 0
    """0: one device. Otherwise all devices, of all processes if there are several: so many of them cut heads,
    MLP and vocabulary (-1: all), the others share the prompts of a batch."""
    run_dir: str | None = None
    """Where results go; default runs/leval-<hash of this config>."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Score predictions that are already there, whatever model made them; nothing is written."""

    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """L-Eval's prediction files, each TASK.pred.jsonl or TASK.jsonl."""
    leading_space: Literal["keep", "drop"] = "keep"
    """The space that Hugging Face's slow LLaMA tokenizer leaves in front of stored predictions, which some
    rules see. Published scores keep it; without it they can be compared with this package's predictions."""


def _table2() -> dict[str, tuple[str, Config]]:
    """The twelve rows, in the paper's order."""
    presets = {}
    for size, scale, context in (("7b", 8.0, "32k"), ("13b", 4.0, "16k")):
        rows = [
            ("dynamic-ntk", "dynamic-ntk", "Dynamic NTK, not fine-tuned"),
            ("ntk", "ntk", "NTK, not fine-tuned"),
            *(
                (f"{kind}-{short}", encoding, f"{title}, fine-tuned at {where}")
                for kind, where in (("long", context), ("short", "4k"))
                for short, encoding, title in (
                    ("yarn", "yarn", "YaRN"),
                    ("resonance", "resonance-yarn", "Resonance YaRN"),
                )
            ),
        ]
        for row, encoding, title in rows:
            name = f"{size}-{row}"
            presets[name] = (
                f"Table 2: {size.upper()}, {title}",
                Config(
                    encoding=encoding,
                    scale=scale,
                    train_length=4096,
                    context=context,
                    paper=name,
                    dtype="bfloat16",
                ),
            )
    return presets


PRESETS: dict[str, tuple[str, Config | Score]] = {
    "any": ("any checkpoint, under its own encoding or another", Config()),
    "smollm2": (
        "SmolLM2-135M-Instruct on the five tasks whose data is at hand, documents of 8K",
        Config(
            checkpoint="smollm2-135m",
            tasks=("coursera", "gsm100", "quality", "tpo", "sci_fi"),
            context="8k",
            max_new_tokens=64,
            gsm_new_tokens=256,
            chat="own",
            batch_size=8,
        ),
    ),
    "score": ("score prediction files that are already there", Score()),
    **_table2(),
}
