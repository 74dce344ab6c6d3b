"""resonance-jax: how a RoPE language model reaches beyond its training length, in JAX.

    import resonance_jax

    spec = resonance_jax.rope.RopeSpec("yarn", head_dim=64, scale=8.0, train_length=4096)

gives every package, each when it is first used:

    rope        encodings: rules, exact phases, resonance
    parallel    the device mesh
    model       the decoder
    data        corpora, tokenizers, token files, PosGen, L-Eval
    train       one run or many at once
    generate    prefill and decoding
    evaluate    NLL, perplexity, passkey, PosGen, L-Eval
    interop     Hugging Face weights, parity with PyTorch
    report      tables, plots, progress

Packages import downwards only: rope < parallel < model < train, generate, evaluate < interop < report.
"""

import importlib
import importlib.metadata
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resonance_jax import data as data
    from resonance_jax import evaluate as evaluate
    from resonance_jax import generate as generate
    from resonance_jax import interop as interop
    from resonance_jax import model as model
    from resonance_jax import parallel as parallel
    from resonance_jax import report as report
    from resonance_jax import rope as rope
    from resonance_jax import train as train

__version__ = "0.1.0"
"""Stated here only: setup.cfg reads it, and a test holds CITATION.cff and CHANGELOG.md to it."""

PACKAGES = ("rope", "parallel", "model", "data", "train", "generate", "evaluate", "interop", "report")
"""The packages that are imported when they are first used."""


def __getattr__(name: str) -> ModuleType:
    """A package that has not been imported yet."""
    if name not in PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PACKAGES})


def _check_flax_and_jax() -> None:
    """Raise ImportError for an old flax with a new jax: pip does not know that they do not work together."""
    flax, jax = (importlib.metadata.version(name) for name in ("flax", "jax"))
    if _numbers(flax) <= (0, 12, 9) and _numbers(jax) >= (0, 11, 1):
        raise ImportError(f"flax {flax} does not work with jax {jax}; run: pip install --upgrade flax")


def _numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


_check_flax_and_jax()
