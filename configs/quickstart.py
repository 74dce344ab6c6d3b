"""The quickstart: a real pretrained LLaMA, extended past its training length by every method.

Command:   python -m experiments.quickstart
Hardware:  2 CPU cores, 3 GB of memory
Time:      8.5 TFLOP in float32 per encoding and passage; on an AMD EPYC with other work on both cores the
           first passage took 7.5 minutes, all of it 16
Expected:  past 8,192 tokens plain RoPE's perplexity climbs, over the last quarter by half; that of NTK, YaRN
           and Resonance YaRN stays where it was. Nothing is trained. The numbers of a real run are in the
           README; the text comes with the project, so they are the same on every machine to the last digits
           of float32.
"""

import dataclasses
from typing import ClassVar

from resonance_jax.settings.precision import Precision


@dataclasses.dataclass(frozen=True)
class Config:
    """A pretrained LLaMA on long passages, to beyond its training length, under every encoding; resumable."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision",)

    checkpoint: str = "smollm2-135m"
    """The model: the name of a packaged checkpoint, a Hugging Face directory, or a GGUF file."""
    corpus: str = "passages"
    """The text: "passages" (three, which come with the project), or a file or folder of long documents."""
    documents: int = 3
    """The first so many documents that are long enough; every method is run on the first one, RoPE, YaRN and
    Resonance YaRN on all."""
    length: int = 12_288
    """The longest context, in positions."""
    every: int = 1_024
    """Perplexity is given at every multiple of so many positions, from one forward."""
    scale: float = 2.0
    """The scale (the paper's s) of the methods that have one."""
    precision: Precision = "auto"
    """How exactly a TPU or a GPU multiplies float32 numbers, by JAX's names; auto: as float32."""
    run_dir: str | None = None
    """Where results go; default runs/quickstart-<hash of this config>."""
