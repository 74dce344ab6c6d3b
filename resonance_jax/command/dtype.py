"""Which dtype "auto" is: bfloat16 where the device multiplies it faster, and float32 elsewhere."""

import dataclasses
import platform
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

FAST_FROM = (0, 12)
"""The first jax whose CPU products of bfloat16 use AMX: 511 GFLOP/s where 0.10 reaches 85 (float32: 121)."""


class HasDtype(Protocol):
    """A config with the option --dtype."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def dtype(self) -> str: ...


Config = TypeVar("Config", bound=HasDtype)


class Dtype(NamedTuple):
    """A dtype of weights and activations, and why it is this one.

    Attributes:
        name: "float32", "bfloat16", …
        why: half a sentence for people; empty where it was asked for.
    """

    name: str
    why: str


def chosen_dtype(asked: str) -> Dtype:
    """The dtype that a command computes in on this process's devices.

    float16 is never chosen. Perplexities of two encodings can differ by less than bfloat16 rounds: they are
    not computed under "auto".

    Args:
        asked: "auto", or the dtype itself, which is then the answer.
    """
    if asked != "auto":
        return Dtype(asked, "")
    from resonance_jax.model.lowering import target

    here = target()
    if here.platform == "tpu":
        return Dtype("bfloat16", "auto: a TPU multiplies it in one pass")
    if here.platform == "gpu":
        return _of_gpu(here.capability)
    return _of_cpu(cpu_flags(), _version())


def _of_gpu(capability: tuple[int, int] | None) -> Dtype:
    if capability is None or capability >= (8, 0):
        return Dtype("bfloat16", "auto: this GPU multiplies it")
    major, minor = capability
    return Dtype("float32", f"auto: a GPU of compute capability {major}.{minor} has no bfloat16")


def _of_cpu(flags: frozenset[str], jax_version: tuple[int, ...]) -> Dtype:
    if "amx_bf16" not in flags:
        return Dtype("float32", "auto: this CPU has no AMX")
    if jax_version < FAST_FROM:
        return Dtype("float32", "auto: this CPU has AMX, but jax uses it from 0.12 on (Python 3.12 or newer)")
    return Dtype("bfloat16", "auto: this CPU has AMX; --dtype float32 is exact")


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU by Linux's names; none where the system does not tell them."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpuinfo.exists():
        return frozenset()
    named = (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(named, "").partition(":")[2].split())


def _version() -> tuple[int, ...]:
    import jax

    return tuple(int(part) for part in jax.__version__.split(".")[:2])


def with_chosen_dtype(config: Config) -> Config:
    """A config whose dtype is a dtype: what "auto" is here takes its place, and is said with its reason.

    A run folder and every identity are made from what is returned, so that a result belongs to the dtype that
    made it.
    """
    chosen = chosen_dtype(config.dtype)
    if chosen.why:
        print(f"dtype: {chosen.name} ({chosen.why})")
    return dataclasses.replace(config, dtype=chosen.name)
