"""Several processes as one program: nothing to configure on Cloud TPU, three values elsewhere.

On a Cloud TPU slice every host runs the same command and finds the others by itself. Elsewhere (GPUs on
several machines, two processes on one) give the address of the first process, how many there are and which
this one is, as arguments or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> int:
    """Join the other processes, before anything looks at devices; returns the number of this process.

    A process that has no others, and is told of none, goes on alone. Raises ValueError when only some of the
    three values are known, or they cannot be.
    """
    given = [coordinator, processes, process]
    stated = [
        os.environ.get(name) if value is None else value for name, value in zip(VARIABLES, given, strict=True)
    ]
    if jax.distributed.is_initialized():
        return jax.process_index()
    if any(value is not None for value in stated):
        jax.distributed.initialize(*_complete(stated))
    elif on_cloud_tpu():
        jax.distributed.initialize()
    else:
        return 0
    return jax.process_index()


def _complete(stated: list) -> tuple[str, int, int]:
    missing = [name for name, value in zip(VARIABLES, stated, strict=True) if value is None]
    if missing:
        raise ValueError(
            f"several processes need {', '.join(VARIABLES)} (or the arguments of those names); "
            f"{' and '.join(missing)} is missing."
        )
    try:
        processes, process = int(stated[1]), int(stated[2])
    except ValueError:
        raise ValueError(f"process {stated[2]!r} of {stated[1]!r}: expected two whole numbers.") from None
    if not 0 <= process < processes:
        raise ValueError(f"there is no process {process} of {processes}; they count from 0.")
    return stated[0], processes, process


def on_cloud_tpu() -> bool:
    """Whether this host is part of a Cloud TPU slice, told without opening its chips."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = any(any(Path("/dev").glob(name)) for name in ("accel[0-9]*", "vfio/[0-9]*"))
    return chips and importlib.util.find_spec("libtpu") is not None


def wait(name: str) -> None:
    """Go on when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)


def first_says(answer: bool) -> bool:
    """The first process's answer, on all of them: they may not share a disk."""
    if jax.process_count() == 1:
        return answer
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return bool(broadcast_one_to_all(np.asarray(answer)))


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """The block runs on the first process, and then on the others, which find what it has written."""
    if jax.process_index() > 0:
        wait("first process first")
    yield
    if jax.process_index() == 0:
        wait("first process first")
