"""Two small LLaMAs trained from scratch, with and without Resonance, extended eight times by every method.

Command:   python -m experiments.from_scratch
Hardware:  2 CPU cores, 3 GB of memory
Time:      under 8 minutes for one seed; each further one 5 minutes
Expected:  past 256 bytes plain RoPE's perplexity climbs several times over; every scaling method stays far
           below it; YaRN after a short fine-tuning falls with length. The numbers of a real run are in the
           README. They depend on the interpreter's version (its standard library is the text), so they are
           never compared across interpreters.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from resonance_jax.settings.precision import Precision

if TYPE_CHECKING:
    from resonance_jax.model import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Train two small LLaMAs (RoPE and Resonance RoPE) at once, extend both by every method, compare."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision",)

    corpus: str = "stdlib"
    """The text: "stdlib" (this interpreter's own standard library), or a text file, a folder, a jsonl."""
    train_length: int = 256
    """Positions that the models are trained at (the paper's L)."""
    length: int = 2048
    """Positions that the models are extended to (the paper's L')."""
    d_model: int = 128
    """Width of the models."""
    n_layers: int = 4
    """Layers of the models."""
    head_dim: int = 64
    """Size of a head; the width must be a multiple of it."""
    steps: int = 1000
    """Training steps."""
    batch_size: int = 8
    """Rows of `train_length` tokens per training step."""
    lr: float = 3e-3
    """Peak learning rate of the training."""
    finetune_steps: int = 40
    """Steps of the fine-tuning at `length`, for YaRN and Resonance YaRN."""
    finetune_batch_size: int = 2
    """Rows of `length` tokens per fine-tuning step."""
    finetune_lr: float = 1e-3
    """Peak learning rate of the fine-tuning."""
    pieces_per_document: int = 4
    """At most so many non-overlapping pieces of `length` tokens from each held-out document."""
    documents: int = 24
    """At most so many held-out documents (in order of name)."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the first weights. For each a model is trained with RoPE and one with Resonance RoPE, all of
    them in one program. With one seed there is no verdict."""
    data_seed: int = 0
    """Seed of the order of the data, the same for every model."""
    precision: Precision = "auto"
    """How exactly a TPU or a GPU multiplies float32 numbers, by JAX's names; auto: as float32."""
    run_dir: str | None = None
    """Where results go; default runs/from_scratch-<hash of this config>."""

    def shape(self) -> DecoderConfig:
        """The decoder that is trained."""
        from resonance_jax import model

        return model.small_llama(self.d_model, self.n_layers, self.head_dim)
