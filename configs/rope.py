"""Encodings looked at closely: explained, drawn, measured, exported.

Commands:  python -m experiments.rope explain PATH        (a config.json, a Hugging Face directory, or a name)
           python -m experiments.rope show rope yarn resonance-yarn
           python -m experiments.rope numerics
           python -m experiments.rope export PATH --encoding resonance-yarn --scale 8 --out DIR
Hardware:  2 CPU cores; export needs memory for the checkpoint, in float32 twice for its check
Time:      seconds; export's check two forwards at the longest length in transformers and one here
Expected:  show: the feature gap of Resonance is 0 on every pair left of its critical dimension. numerics:
           1e-6 for ours everywhere, 8e-2 for float32 products at a million. results/rope has a real run.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What an encoding given by name is made with."""

    head_dim: int = 128
    """Size of a head, all of it rotated."""
    base: float = 10_000.0
    """The base of the frequencies (the paper's b, rope_theta)."""
    train_length: int = 4096
    """Positions of the training (the paper's L)."""
    scale: float | None = None
    """The scale (the paper's s), for methods that take one; default: length / train_length, or 8."""
    length: int | None = None
    """The longest length that is looked at (the paper's L'); default: scale x train_length."""
    beta_fast: float | None = None
    """YaRN's beta_fast; default: 32."""
    beta_slow: float | None = None
    """YaRN's beta_slow; default: 1."""
    ramp: str | None = None
    """YaRN's ramp: "dimension" (all released code, the default) or "rotations" (as its paper prints it)."""
    truncate: bool | None = None
    """Whether YaRN's bounds are rounded to whole dimensions; default: they are."""
    attention_factor: float | None = None
    """The factor on cosines and sines, in the place of YaRN's or LongRoPE's own."""
    dynamic_factor: float | None = None
    """Dynamic NTK's f; default: the paper's 1."""
    long_factor: tuple[float, ...] | None = None
    """LongRoPE's factors, one per pair; only longrope needs them."""
    options: tuple[str, ...] = ()
    """NAME=VALUE of any other option that a method takes, such as low_freq_factor=2."""


@dataclasses.dataclass(frozen=True)
class Explain(Table):
    """Say what an encoding means, and how transformers and the paper's released code understand it."""

    config: str
    """A config.json, a Hugging Face directory, or a name such as yarn or resonance-yarn. What a file states
    is taken from it alone."""
    layer_type: str | None = None
    """One of the layer types of a config whose layers differ; default: all of them."""


@dataclasses.dataclass(frozen=True)
class Show(Table):
    """Draw encodings: wavelengths, decay of attention with distance, feature gap, rotation angles."""

    methods: tuple[str, ...]
    """Names such as rope, yarn, dynamic-ntk, each with or without resonance- before it; or a config.json or a
    Hugging Face directory, of which each layer type is drawn; names beside it are then for that model."""
    pair: int | None = None
    """The pair whose angles are drawn; default: of those that turn twice within --angles-train-length,
    the one that strays the most under plain RoPE."""
    angles_train_length: int = 64
    """Positions seen in the picture of angles (the paper's Figure 1; more of them fill the circle)."""
    angles_length: int = 128
    """Positions in the picture of angles."""
    run_dir: str | None = None
    """Where results go; default runs/rope-show-<hash of this config>."""


@dataclasses.dataclass(frozen=True)
class Numerics(Table):
    """Measure how wrong cos and sin are: ours, float32 and bfloat16 products, up to position 2^20."""

    methods: tuple[str, ...] = ("rope", "yarn", "resonance-rope", "resonance-yarn")
    """Names as `show` takes them."""
    last_position: int = 2**20
    """Positions double from 256 up to this one."""
    run_dir: str | None = None
    """Where results go; default runs/rope-numerics-<hash of this config>."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a Hugging Face directory under another encoding, and check it in unmodified transformers."""

    checkpoint: str
    """A Hugging Face directory (LLaMA or Mistral)."""
    encoding: str = "resonance-yarn"
    """A name as `show` takes it, or "own"; where transformers has no name for it, as longrope."""
    out: str | None = None
    """The directory to write; default: hf in the run folder."""
    scale: float | None = None
    """The scale (the paper's s), for methods that take one; default: the checkpoint's for its own method,
    else 8."""
    train_length: int | None = None
    """Positions of the training (the paper's L); default: what the checkpoint's config states."""
    length: int | None = None
    """The longest sequence, in positions; default: scale x train_length."""
    dtype: str | None = None
    """Dtype of the exported weights; default: as the checkpoint stores them."""
    check: bool = True
    """Compare logits, perplexity and greedy output with transformers (where torch is installed)."""
    corpus: str = "stdlib"
    """The text that the check scores."""
    tokenizer: str | None = None
    """"bytes", or a path; default: the checkpoint's own. Without one, random ids are compared."""
    new_tokens: int = 100
    """How many tokens of greedy output are compared, within the training length."""
    tolerance: float = 1e-4
    """The largest difference of logits that passes, within the training length and with the same phases, in
    standard deviations of the logits."""
    run_dir: str | None = None
    """Where results go; default runs/rope-export-<hash of this config>."""
