"""The platform that a trace is for: this process's own, or another one that a program is exported for."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Target(NamedTuple):
    """A platform that programs are made for.

    Attributes:
        platform: jax's name of it, "cpu", "gpu" or "tpu".
        capability: the compute capability of an NVIDIA GPU, such as (9, 0); None elsewhere.
    """

    platform: str
    capability: tuple[int, int] | None


_stated: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def lowering_for(platform: str, capability: tuple[int, int] | None = None) -> Iterator[None]:
    """Choose kernels and block sizes for another platform than this process runs on, for `jax.export`.

    A function that was traced before keeps its choice: jit it anew inside.

    Args:
        platform: "cpu", "gpu" or "tpu".
        capability: the compute capability of the GPU.
    """
    token = _stated.set(Target(platform, capability))
    try:
        yield
    finally:
        _stated.reset(token)


def default_precision() -> str:
    """jax's name of the precision of matrix products that state none."""
    stated = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]  # as below
    return str(stated)


def stated_precision() -> dict[str, str]:
    """The same as part of an identity: nothing where JAX is left to its default, as commands do on a CPU.

    Results that were kept before precision was stated say nothing, and are read on.
    """
    stated = default_precision()
    return {} if stated == "None" else {"precision of products": stated}


def target() -> Target:
    """The platform that this trace is lowered for, and the compute capability of its GPU."""
    stated = _stated.get()
    if stated is not None:
        return stated
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
    device = chosen or jax.default_backend()
    if isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    parts = str(getattr(device, "compute_capability", "")).split(".")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        return Target(device.platform, (int(parts[0]), int(parts[1])))
    return Target(device.platform, None)
