"""Eight simulated devices, rank promotion an error everywhere, fixtures for strict and 64-bit numerics."""

import json
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what these tests do: level 1 halves it. Commands run in subprocesses use the default.
FAST_COMPILE = "--xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDENS = Path(__file__).parent / "goldens"


class Goldens:
    """The committed numbers of the PyTorch reference and of transformers, by entry id (manifest.json)."""

    def __init__(self):
        self.entries = json.loads((GOLDENS / "manifest.json").read_text())["entries"]
        self._files = {}

    def arrays(self, entry: dict) -> dict[str, np.ndarray]:
        name = entry["file"]
        if name not in self._files:
            self._files[name] = np.load(GOLDENS / name)
        return {array: self._files[name][f"{entry['id']}/{array}"] for array in entry["arrays"]}

    def find(self, file: str, id: str) -> tuple[dict, dict[str, np.ndarray]]:
        entry = next(e for e in self.entries if e["file"] == file and e["id"] == id)
        return entry, self.arrays(entry)

    def of_kind(self, kind: str) -> list[dict]:
        return [e for e in self.entries if e["kind"] == kind]


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens()


@pytest.fixture
def strict_dtypes():
    """Strict dtype promotion, for our own numerics (optax and jax.nn break under it)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    """64-bit JAX for one test."""
    with jax.enable_x64(True):
        yield
