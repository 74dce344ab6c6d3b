"""PosGen (Resonance RoPE, section 5): the paper's Table 1 and Figure 3, every encoding and seed at once.

Commands and what they take (2 CPU cores unless said):

    python -m experiments.posgen smoke      under 60 s; shows that everything runs
    python -m experiments.posgen cpu        about 12 minutes, 2 GB; the table in small: a LLaMA-like decoder
                                            of width 64, five seeds
    python -m experiments.posgen table1     the paper's size, for a GPU: T5-small's two layers, 150 epochs

Each takes --protocol corrected|release|paper (below), and every setting of Config. `table1 --plan` times ten
steps and says how long the whole takes. It stops cleanly when it is told to (`timeout -s TERM 560 python -m
experiments.posgen table1`), and the same command goes on. A finished task needs only its small result.json.

Protocols, and what each of them is:

    corrected   what the published code does, with its mistakes put right: the MLP is trained, YaRN's L is the
                training length 64 and s = 256/64, and val and test are sequences that training has not seen.
                As published, weights are trained with the unscaled table (RoPE or Resonance RoPE), and YaRN's
                is swapped in for evaluation: one training serves a method and its scaled form.
    release     what the published code does: the MLP stays frozen as it was drawn, L = 257, s = 257/65, val
                and test are rows of the training set.
    paper       what the paper says: the same table in training and in evaluation, L = 64, s = 4, YaRN's beta
                32 and 1 (it names none; --beta-fast 2 is the code's), sequences that training has not seen.

Expected: RoPE falls beyond 64 tokens and YaRN, swapped in, much less; a trained MLP reaches the ceiling of
the task's two-token shortcut in distribution (98.43 %, and 52.94 % for semi_recursive). results/posgen_cpu
has the figures of a real run.
"""

import dataclasses
from typing import Literal

from resonance_jax.settings.precision import Precision

TASKS = ("recursive", "cot", "semi_recursive")
ENCODINGS = ("rope", "resonance-rope", "yarn", "resonance-yarn")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train every encoding and seed of PosGen's tasks at once; draw the paper's Table 1 and Figure 3."""

    protocol: Literal["corrected", "release", "paper"] = "corrected"
    """How data and tables are made and what is trained: release (as published), corrected (the same with its
    mistakes put right), paper (as the paper says)."""
    tasks: tuple[Literal["recursive", "cot", "semi_recursive"], ...] = TASKS
    """Which tasks; they differ in where a token's far tokens are."""
    encodings: tuple[str, ...] = ENCODINGS
    """rope, yarn, llama3, dynamic-ntk, … (any of rope.METHODS), each with or without resonance- before it."""
    seeds: tuple[int, ...] = (5549, 4955, 42, 3701, 49)
    """Seeds of the first weights, the order of the data and dropout, a run each; default: the release's."""
    hash: Literal["sum", "permuted_sum"] = "sum"
    """How a token follows from others. permuted_sum has no two-token shortcut: only positions help."""
    modulus: int = 17
    """How many different numbers a sequence is made of."""
    far: int = 1
    """How many far tokens a token depends on (the paper's j)."""
    near: int = 3
    """How many near tokens a token depends on (the paper's k)."""
    train_length: int = 64
    """Tokens of a training sequence, [EOS] not counted (the paper's L)."""
    length: int = 256
    """Tokens of a test sequence (the paper's L')."""
    train_rows: int = 10_000
    """How many sequences are trained on."""
    val_rows: int = 1_000
    """How many sequences the evaluation is chosen by."""
    test_rows: int = 1_000
    """How many sequences the accuracies are measured on."""
    model: Literal["t5", "llama"] = "t5"
    """t5: the paper's (no 1/sqrt(H), tied head). llama: LLaMA's attention and head, with a ReLU MLP."""
    d_model: int = 512
    """Width of the decoder."""
    n_layers: int = 2
    """Layers; the paper has 2, the published configuration 6."""
    n_heads: int = 8
    """Heads, each of --head-dim whatever the width."""
    head_dim: int = 64
    """Size of a head, all of it rotated; 64 gives the paper's tables."""
    d_ff: int = 2048
    """Width of the MLP."""
    dropout: float = 0.1
    """Dropout rate, in the places where T5 has it."""
    epochs: int = 150
    """How often each training sequence is seen."""
    batch_size: int = 128
    """Sequences per step."""
    lr: float = 2e-4
    """Peak learning rate."""
    schedule: Literal["onecycle", "constant", "cosine", "linear"] = "onecycle"
    """The learning-rate schedule; the release's is PyTorch's OneCycleLR, which cycles beta1 too."""
    weight_decay: float = 0.01
    """AdamW's weight decay, on everything that is trained."""
    eval_epochs: int = 2
    """Epochs between evaluations."""
    beta_fast: float | None = None
    """YaRN's beta_fast; default: the protocol's (paper: 32, the others: 2)."""
    beta_slow: float | None = None
    """YaRN's beta_slow; default: 1."""
    long_factor: tuple[float, ...] | None = None
    """LongRoPE's factors, one per pair; only the encoding longrope needs them."""
    precision: Precision = "auto"
    """How exactly float32 numbers are multiplied; auto: tensorfloat32 on GPUs, float32 elsewhere."""
    micro: int = 0
    """Rows of a micro-batch (0: all at once), as many as a CPU's cache or a GPU's memory can hold."""
    save_seconds: float = 30.0
    """Seconds between checkpoints, the most that a kill loses."""
    plan: bool = False
    """Only time ten steps and an evaluation, and say how long the whole would take."""
    run_dir: str | None = None
    """Where results go; default runs/posgen-<hash of this config>."""


_SMALL = Config(
    model="llama",
    d_model=64,
    n_heads=2,
    d_ff=256,
    dropout=0.0,
    epochs=5,
    batch_size=32,
    lr=1e-3,
    eval_epochs=1,
    val_rows=256,
    test_rows=256,
    micro=16,
)

PRESETS: dict[str, tuple[str, Config]] = {
    "smoke": (
        "under 60 s on 2 cores: shows that everything runs, not what is true",
        dataclasses.replace(
            _SMALL,
            seeds=(5549, 4955),
            train_rows=512,
            val_rows=32,
            test_rows=32,
            d_model=32,
            d_ff=64,
            n_heads=1,
        ),
    ),
    "cpu": ("about 12 minutes on 2 cores: small decoders, five seeds", _SMALL),
    "table1": ("the paper's size, for a GPU: T5-small's two layers, 150 epochs, five seeds", Config()),
}
