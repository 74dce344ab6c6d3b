"""Do we compute what PyTorch computes? A checkpoint compared layer by layer, in float64 first.

Command:   python -m experiments.parity --checkpoint PATH
           python -m experiments.parity                       (a small random LLaMA, made on the spot)
           python -m experiments.parity --against goldens     (kept numbers: needs no torch)
Hardware:  CPU; torch and transformers (make sets them up: .venv with the extra `parity`)
Time:      seconds for a small model; a 7B one needs 54 GB in float64 on each side, and shorter --positions
Expected:  every tensor within 1e-9 in float64, within 2e-4 in float32; exit code 1 when one is not
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare our decoder with transformers' on the same tokens, tensor by tensor."""

    checkpoint: str = "random"
    """A Hugging Face directory of any family that is read; "random": a small LLaMA with grouped heads."""
    reference: str | None = None
    """The directory that PyTorch reads; default: the same. Another one shows where a copy went wrong."""
    against: Literal["transformers", "goldens"] = "transformers"
    """goldens: the numbers kept in this clone's tests, whatever the checkpoint."""
    encodings: tuple[str, ...] = ("own",)
    """"own": what each side's config.json states; or names such as yarn, resonance-yarn, dynamic-ntk."""
    scale: float | None = None
    """The scale (the paper's s), for encodings by name that take one; default: the checkpoint's own for its
    own method, 8 for any other."""
    train_length: int | None = None
    """Positions of the training (the paper's L); default: what the checkpoint's config states."""
    lengths: tuple[float, ...] = (0.5, 1.0, 8.0)
    """How long the compared sequences are, in training lengths."""
    positions: tuple[int, ...] = ()
    """The same in positions, in the place of --lengths."""
    dtypes: tuple[Literal["float64", "float32", "bfloat16"], ...] = ("float64", "float32", "bfloat16")
    """float64 decides at 1e-9, float32 at the tolerances measured for it; bfloat16 is only shown."""
    gradients: bool = False
    """Compare every parameter's gradient too."""
    seed: int = 0
    """Seed of the random tokens, and of the random checkpoint."""
    run_dir: str | None = None
    """Where results go; default runs/parity-<hash of this config>."""
