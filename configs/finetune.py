"""Fine-tuning to a longer context: the paper's eight settings, and one for two CPU cores.

Command:   python -m experiments.finetune cpu
           python -m experiments.finetune 7b-long-resonance --checkpoint PATH --corpus PATH
           … --plan first says what a device would hold, --compile v5p:2x2x2 what the TPU's compiler makes
           of it; docs/tpu.md has the commands for a TPU slice
Hardware:  cpu: 2 cores, 2 GB. The paper's: four 40 GB A100s with offloading; here 8 chips of 95 GB (TPU v5p)
           or 80 GB hold 7B with float32 master weights and moments
Time:      cpu: about 5 minutes. The paper's settings are 105 million tokens each
Expected:  cpu: the fine-tuned model's perplexity falls with length where the base's climbs. The paper's: its
           Table 2 and Figure 4. They were not run where this was written: LLaMA-2's weights and PG19 are not
           available there.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

from tyro.conf import OmitArgPrefixes
from tyro.constructors import PrimitiveConstructorSpec

from resonance_jax.settings import LoraConfig, MeshConfig, OptimizerConfig, PretrainConfig
from resonance_jax.settings.precision import Precision

FlagOrAuto = Annotated[
    bool | Literal["auto"],
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[auto]",
        instance_from_str=lambda words: words[0] if words else True,
        is_instance=lambda value: value in (True, False, "auto"),
        str_from_instance=lambda value: [str(value)],
        choices=("auto",),
    ),
]
"""An option that is a flag, or is followed by "auto"."""


@dataclasses.dataclass(frozen=True)
class Text:
    """The text that is trained on, and how it becomes rows."""

    corpus: str = "stdlib"
    """A corpus by name or path; input_ids of jsonl and parquet files are taken as they are."""
    split: str = "train"
    """Which split of the corpus: train, all, or a dataset's own name."""
    data_dir: str | None = None
    """Where prepared TFDS datasets lie."""
    text_field: str = "text"
    """The field of jsonl and parquet files that holds the text."""
    tokenizer: str | None = None
    """"bytes", a tokenizer.json, a tokenizer.model or a directory; "none" for a corpus that is tokenized.
    Default: the checkpoint's own, "bytes" without one."""
    bos: str = "auto"
    """BOS: auto (what the tokenizer really puts in front), none, or a token's id."""
    rule: str = "auto"
    """What stands around each document: bos_eos, bos, eos, none; auto: those that the tokenizer has."""
    mode: str = "split"
    """"split" cuts the tokens into rows; "truncate" takes the head of every --source-chunk tokens and leaves
    the rest, as the paper's release does."""
    source_chunk: int = 65_536
    """With --mode truncate: tokens in a chunk, of which the head is kept."""
    cache_dir: str | None = None
    """Where token files are kept; default: the run folder."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Whether several encodings are trained and scored, and on what."""

    compare: bool = False
    """Fine-tune both without and with Resonance, from the same weights on the same rows; then score them and
    the base on held-out text at growing lengths."""
    documents: int = 24
    """With --compare: at most so many held-out documents (in order of name)."""
    pieces_per_document: int = 4
    """With --compare: at most so many pieces of --length tokens from each document."""
    seeds: tuple[int, ...] = ()
    """With --compare: all of it once for each of these seeds, in place of --seed, and differences paired by
    seed with an interval over the trainings. One training gets no verdict."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """What a run keeps on its way, and how it goes on from there."""

    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on from the newest checkpoint of the run folder if there is one; never: refuse a folder that
    has one; must: refuse a folder that has none."""
    save_seconds: float = 300.0
    """Seconds between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    checkpoint_dir: str | None = None
    """Where checkpoints go, gs://… too; default: the run folder."""
    profile: int = 0
    """How many steps JAX's profiler traces into the run folder."""


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What is said ahead of a run, in its place: what it would need on a chip that may be elsewhere."""

    plan: FlagOrAuto = False
    """Only say what a device would hold and how long a step might take (exit code 1: it does not fit). auto:
    search the mesh, --micro and --remat that fit --devices of --chip, by the plan and, where the TPU's
    compiler is installed, by that too."""
    chip: str | None = None
    """The chip to plan for (h100, h200, a100-40, a100-80, v4, v5e, v5p, v6e); default: the one here."""
    devices: int | None = None
    """How many chips to plan for; default: those that are here."""
    compile: str | None = None
    """Only compile the step, with the TPU's own compiler, for a slice that need not be there: v5p:2x2x2,
    v6e:4x4, … (exit code 1: it does not fit); needs pip install "jax[tpu]", no TPU."""
    slices: int = 1
    """With --compile: how many such slices, joined by the data centre's network; --data spans them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune a decoder under one encoding; resumable, to the bit on the same mesh, to 1e-7 on another."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision", "seeds")

    checkpoint: str | None = None
    """What to start from: a Hugging Face directory, a GGUF file, or the name of a packaged checkpoint
    (smollm2-135m)."""
    shape: str = "tiny"
    """Without a checkpoint: a shape by name (resonance_jax/model/config.py), with fresh weights; also what
    --plan takes where the checkpoint is not there."""
    from_scratch: str | None = None
    """Without a checkpoint: a run folder of experiments.from_scratch, to start from its plain RoPE model.
    "default" is where that command leaves it; if it has not run, a model is trained here."""
    pretraining: OmitArgPrefixes[PretrainConfig] = dataclasses.field(default_factory=PretrainConfig)
    """Without a checkpoint: a training of fresh weights that comes first."""

    method: str = "yarn"
    """The RoPE scaling method (resonance_jax.rope.METHODS)."""
    resonance: bool = False
    """Apply Resonance: round the encoding's wavelengths to whole positions."""
    scale: float = 8.0
    """The scale (the paper's s), for methods that take one."""
    train_length: int | None = None
    """Positions of the base's training (the paper's L); default: what the checkpoint's config states."""
    length: int = 4096
    """Positions in a training row."""

    comparison: OmitArgPrefixes[Comparison] = Comparison()
    """Whether several encodings are trained and scored, and on what."""

    text: OmitArgPrefixes[Text] = Text()
    """The text that is trained on, and how it becomes rows."""

    steps: int = 400
    """Optimizer steps."""
    batch_size: int = 64
    """Rows per step, over all devices."""
    micro: int = 0
    """Rows of a micro-batch, over all devices; the gradients of micro-batches are added up. 0: one row per
    device, more if rows are short."""
    optimizer: OmitArgPrefixes[OptimizerConfig] = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW and its learning-rate schedule."""

    lora: bool = False
    """Train adapters on all linear layers except the head; merged at the end."""
    adapters: OmitArgPrefixes[LoraConfig] = dataclasses.field(default_factory=LoraConfig)
    """With --lora: what is trained instead of the weights."""

    dtype: str = "bfloat16"
    """Dtype of activations and of the exported weights; master weights and moments are float32."""
    precision: Precision = "auto"
    """How exactly a TPU or GPU multiplies float32 numbers, by JAX's names; auto: float32 if --dtype is."""
    remat: str = "full"
    """What the gradient recomputes: full (each layer), attention (all but attention), dots (all but
    products), none."""
    kernel: str = "auto"
    """The attention kernel: auto, xla, block_pairs, cudnn or splash."""
    mesh: OmitArgPrefixes[MeshConfig] = dataclasses.field(default_factory=MeshConfig)
    """Over how many devices each axis of the mesh goes. One size may be -1, which takes the devices that are
    left; where data or fsdp would so get more devices than there are rows, the rest cut time."""

    seed: int = 42
    """Seed of the order of the data, of dropout and of fresh weights."""
    keeping: OmitArgPrefixes[Keeping] = Keeping()
    """What a run keeps on its way, and how it goes on from there."""
    ahead: OmitArgPrefixes[Ahead] = Ahead()
    """What is said ahead of a run, in its place."""
    run_dir: str | None = None
    """Where results go; default runs/finetune-<hash of this config>."""


ELSEWHERE = (
    *("micro", "remat", "kernel", "data", "fsdp", "tensor", "sequence"),
    *("resume", "save_seconds", "keep", "checkpoint_dir", "cache_dir", "profile", "plan", "chip", "devices"),
    *("compile", "slices"),
)
"""Options that say where and how a run is computed, not what it is: they may change when it goes on."""


def _paper(shape: str, scale: float, length: int, steps: int, resonance: bool) -> Config:
    """LLaMA2-Chat on PG19 in chunks of 65,536 tokens, of which the head is kept (paper App. C.2)."""
    return Config(
        checkpoint="PATH",
        shape=shape,
        text=Text(corpus="PATH", split="all", tokenizer="none", rule="none", mode="truncate"),
        resonance=resonance,
        scale=scale,
        train_length=4096,
        length=length,
        steps=steps,
    )


CPU = Config(
    from_scratch="default",
    shape="tiny",
    pretraining=PretrainConfig(steps=600),
    comparison=Comparison(compare=True),
    train_length=256,
    length=2048,
    text=Text(tokenizer="bytes"),
    steps=40,
    batch_size=2,
    optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.1),
    dtype="float32",
    remat="none",
    mesh=MeshConfig(data=-1, fsdp=1),
    keeping=Keeping(save_seconds=30.0),
)

PRESETS: dict[str, tuple[str, Config]] = {"cpu": ("A small model on the embedded corpus, 256 to 2,048.", CPU)}
for _resonance in (False, True):
    _name = f"smollm2-{'resonance' if _resonance else 'yarn'}"
    _long = Config(
        checkpoint="smollm2-135m",
        text=Text(corpus="PATH", split="all"),
        resonance=_resonance,
        scale=4.0,
        length=4096,
    )
    _cpu = {"steps": 100, "batch_size": 1, "dtype": "float32", "mesh": MeshConfig(data=-1, fsdp=1)}
    PRESETS[_name] = (
        f"SmolLM2-135M under {'Resonance ' if _resonance else ''}YaRN, s = 4: 100 rows of 4,096 on 2 cores.",
        dataclasses.replace(_long, **_cpu),
    )
    PRESETS[f"{_name}-long"] = (
        "The same by the paper's recipe, for an accelerator: 400 steps of 64 rows (5e17 FLOP).",
        _long,
    )
for _size, _scale, _long, _steps in (("7b", 8.0, 32_768, 50), ("13b", 4.0, 16_384, 100)):
    for _kind, _length, _count in (("long", _long, _steps), ("short", 4096, 400)):
        for _resonance in (False, True):
            _title = f"{'Resonance ' if _resonance else ''}YaRN"
            PRESETS[f"{_size}-{_kind}-{'resonance' if _resonance else 'yarn'}"] = (
                f"The paper's {_title} on LLaMA2-Chat {_size.upper()}: {_count} steps at {_length:,}.",
                _paper(f"llama2-{_size}", _scale, _length, _count, _resonance),
            )
