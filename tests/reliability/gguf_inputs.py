"""Mutated GGUF files: what is read of one are the numbers that the `gguf` package finds in it, all finite."""

import random
from pathlib import Path

import numpy as np
import pytest

from resonance_jax import interop
from tests.interop.test_gguf import write
from tests.mutations import mutated_bytes
from tests.reliability.judge import Verdict, judged


def base(folder: Path) -> Path:
    """A small GGUF file in a folder."""
    return write(folder / "small.gguf", "F32")


def a_gguf(rng: random.Random, folder: Path) -> Verdict:
    """Any byte of its metadata or of its tensors."""
    gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
    file = folder / "small.gguf"
    content = file.read_bytes()
    head = 6000 if rng.random() < 0.7 else len(content)
    file.write_bytes(mutated_bytes(content[:head], rng) + content[head:])
    found = []
    verdict = judged(lambda path: found.append(interop.load_hf(path)), str(file), ["small.gguf"], None)
    if found:
        theirs = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
        embed = np.asarray(found[0].params["embed"])
        if not np.isfinite(embed).all() or not np.array_equal(embed, theirs["token_embd.weight"]):
            verdict.faults.append(("wrong number", "other embeddings than the file's"))
    return verdict
