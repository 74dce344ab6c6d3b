"""Eight simulated devices, rank promotion an error everywhere, fixtures for strict and 64-bit numerics."""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
from tests.fast_compile import FAST_COMPILE

# Commands in processes of their own use the default, where a test does not say otherwise.
os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

# A program that several tests ask for, or processes that are killed and go on, is compiled once a session.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Annotations are promises: every call in these tests is held to its types and shapes. Before the package is
# imported; commands run in subprocesses are not checked.
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook finds it where it is imported already)

install_import_hook("resonance_jax", "tests.typechecker.checked")

import jax
import pytest

from experiments.parity.goldens import Goldens

jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens(GOLDENS)


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
