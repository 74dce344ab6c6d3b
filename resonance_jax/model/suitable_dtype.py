"""The dtype that suits a device: bfloat16 where it is multiplied faster, and float32 elsewhere."""

import platform
from pathlib import Path
from typing import NamedTuple

import jax

from resonance_jax.model.lowering import target

FAST_FROM = (0, 12)
"""The first jax whose CPU products of bfloat16 use AMX: 511 GFLOP/s where 0.10 reaches 85 (float32: 121)."""


class Dtype(NamedTuple):
    """A dtype of weights and activations, and why it is this one.

    Attributes:
        name: "float32", "bfloat16", …
        why: half a sentence for people.
    """

    name: str
    why: str


def suitable_dtype() -> Dtype:
    """The dtype that suits the devices which programs are made for. float16 is never chosen."""
    here = target()
    if here.platform == "tpu":
        return Dtype("bfloat16", "a TPU multiplies it in one pass")
    if here.platform == "gpu":
        return _of_gpu(here.capability)
    return _of_cpu(cpu_flags(), _version())


def _of_gpu(capability: tuple[int, int] | None) -> Dtype:
    if capability is None:
        return Dtype("float32", "this GPU states no compute capability")
    if capability >= (8, 0):
        return Dtype("bfloat16", "this GPU multiplies it")
    major, minor = capability
    return Dtype("float32", f"a GPU of compute capability {major}.{minor} has no bfloat16")


def _of_cpu(flags: frozenset[str], jax_version: tuple[int, ...]) -> Dtype:
    if "amx_bf16" not in flags:
        return Dtype("float32", "this CPU has no AMX")
    if jax_version < FAST_FROM:
        return Dtype("float32", "this CPU has AMX, but jax uses it from 0.12 on (Python 3.12 or newer)")
    return Dtype("bfloat16", "this CPU has AMX; --dtype float32 is exact")


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU by Linux's names; none where the system does not tell them."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpuinfo.exists():
        return frozenset()
    named = (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(named, "").partition(":")[2].split())


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in jax.__version__.split(".")[:2])
