"""Perplexity against context length for any checkpoint: the paper's Figure 4, and any other sweep.

Command:   python -m experiments.perplexity --checkpoints base=PATH --corpora stdlib
           python -m experiments.perplexity figure4-llama2-7b --checkpoints chat=PATH yarn=PATH …
Hardware:  figure4-llama2-7b: one 80 GB accelerator in bfloat16, or a host's devices with --parallel mesh
Time:      one forward of 32,768 tokens per document and static encoding; sixteen for a dynamic one
Expected:  Figure 4 of the paper (no table is printed there): Resonance YaRN lowest at every length. The
           presets of the paper were not run where this was written: LLaMA-2's weights and the two corpora
           are not available there. smollm2: past 8,192 tokens plain RoPE's perplexity climbs, that of NTK,
           YaRN and Resonance YaRN does not (results/quickstart has it to 12,288; the preset was not run)
"""

import dataclasses
from typing import ClassVar

from tyro.conf import OmitArgPrefixes

from resonance_jax.settings import MeshConfig
from resonance_jax.settings.precision import Precision


@dataclasses.dataclass(frozen=True)
class Config:
    """Perplexity of checkpoints x encodings x corpora x lengths; resumable document by document."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision",)

    checkpoints: tuple[str, ...]
    """Each PATH or NAME=PATH: a Hugging Face directory, a GGUF file, or the name of a packaged checkpoint
    (smollm2-135m)."""
    corpora: tuple[str, ...] = ("stdlib",)
    """Corpora by name or path."""
    encodings: tuple[str, ...] = ("own", "dynamic_ntk", "ntk", "yarn", "resonance-yarn")
    """Methods, each with an optional "resonance-" in front and an optional "@NAME" of one checkpoint behind;
    "own" is what a checkpoint's config states."""
    lengths: tuple[int, ...] = (2048, 4096, 8192)
    """Context lengths in positions, BOS included."""
    dynamic_lengths: tuple[int, ...] = ()
    """Those of --lengths that dynamic encodings are scored at, each by a forward of its own; default: all."""
    scale: float | None = None
    """The scale (the paper's s) of static methods; default: the checkpoint's own for its own method,
    otherwise what takes L to the longest of --lengths."""
    train_length: int | None = None
    """Positions of the training (the paper's L); default: what the checkpoint's config states."""
    protocol: str = "prefix"
    """"prefix", "sliding" or "yarn" (evaluate.perplexity_protocols says what each scores)."""
    stride: int = 256
    """Tokens that a sliding window advances by."""
    truncate: bool = False
    """Score one window per document, as the YaRN script's --truncate does."""
    min_tokens: int = 0
    """Documents shorter than this are left out."""
    documents: int = 50
    """How many documents are scored: the first that are long enough."""
    tokenizer: str | None = None
    """"bytes", a tokenizer.json, a tokenizer.model, or a directory; default: each checkpoint's own."""
    bos: str = "auto"
    """What stands in front of every window: auto (what the tokenizer really puts there), none, or a token's
    id."""
    data_dir: str | None = None
    """Where prepared TFDS datasets lie."""
    text_field: str = "text"
    """The field of jsonl and parquet files that holds the text."""
    split: str | None = None
    """Which split of the corpora: heldout, train, all, or a dataset's own name; default: all of a file or
    folder of your own, of others what is held out (a TFDS corpus: its test split)."""
    dtype: str = "float32"
    """Dtype of weights and activations; norms, rotation, softmax and loss are at least float32."""
    precision: Precision = "auto"
    """How exactly a TPU or GPU multiplies float32 numbers, by JAX's names; auto: float32 if --dtype is."""
    parallel: str = "none"
    """"none": one device; "pmap": rows over this host's devices; "mesh": as the next four options say."""
    mesh: OmitArgPrefixes[MeshConfig] = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    """With --parallel mesh: over how many devices each axis goes. --sequence cuts every window, and so does
    --data where there are fewer windows than devices."""
    compile: str | None = None
    """Only compile the scoring of the longest window, with the TPU's own compiler, for a slice that need not
    be there: v5p:2x2x2, … (exit code 1: it does not fit); needs pip install "jax[tpu]", no TPU."""
    shape: str = "llama2-7b"
    """With --compile, where the checkpoint is not there: a shape by name (resonance_jax/model/config.py)."""
    run_dir: str | None = None
    """Where results go; default runs/perplexity-<hash of this config>."""


def _figure4(s: float, longest: int) -> Config:
    """Protocols as YaRN's eval.sh runs them: truncated documents, first 50 in order, every 2,048 tokens."""
    return Config(
        checkpoints=("chat=PATH", "yarn=PATH", "resonance=PATH"),
        corpora=("scrolls/gov_report", "proof-pile.jsonl"),
        encodings=("dynamic_ntk@chat", "ntk@chat", "yarn@yarn", "resonance-yarn@resonance"),
        lengths=tuple(range(2048, longest + 1, 2048)),
        scale=s,
        train_length=4096,
        protocol="yarn",
        truncate=True,
        min_tokens=16_384,
        documents=50,
        dtype="bfloat16",
    )


SMOLLM2 = Config(
    checkpoints=("smollm2-135m",),
    corpora=("passages",),
    encodings=("own", "dynamic_ntk", "ntk", "yarn", "resonance-yarn"),
    lengths=tuple(range(2048, 16_385, 2048)),
    dynamic_lengths=(4096, 8192, 12_288, 16_384),
    scale=2.0,
    documents=8,
)

PRESETS: dict[str, tuple[str, Config]] = {
    "sweep": ("Any checkpoints, encodings and corpora.", Config(checkpoints=())),
    "smollm2": (
        "Figure 4 on a model that every machine can have: SmolLM2-135M, s = 2, to 16K; give --corpora.",
        SMOLLM2,
    ),
    "figure4-llama2-7b": ("The paper's Figure 4: LLaMA-2-Chat 7B, s = 8, to 32K.", _figure4(8.0, 32_768)),
    "figure4-llama2-13b": ("The same for 13B, s = 4, to 16K.", _figure4(4.0, 16_384)),
}
