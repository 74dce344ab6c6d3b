"""Several processes as one program: nothing to configure on Cloud TPU, three values elsewhere.

On a Cloud TPU slice every host runs the same command and finds the others by itself. Elsewhere (GPUs on
several machines, two processes on one) give the address of the first process, how many there are and which
this one is, as arguments or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> int:
    """Join the other processes of a run. Call it before anything looks at devices.

    A process that is told of no others, and is not on a Cloud TPU, goes on alone.

    Args:
        coordinator: "host:port" of the first process; default the environment's JAX_COORDINATOR_ADDRESS.
        processes: how many there are; default JAX_NUM_PROCESSES.
        process: which of them this is, from 0; default JAX_PROCESS_ID.

    Returns:
        The number of this process.

    Raises:
        ValueError: only some of the three values are known, or they contradict each other.
    """
    given: list[str | int | None] = [coordinator, processes, process]
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


def _complete(stated: list[str | int | None]) -> tuple[str, int, int]:
    """The three values as numbers, once all of them are known. Raises ValueError where they are not."""
    address, count, number = stated
    if address is None or count is None or number is None:
        missing = [name for name, value in zip(VARIABLES, stated, strict=True) if value is None]
        raise ValueError(
            f"several processes need {', '.join(VARIABLES)} (or the arguments of those names); "
            f"{' and '.join(missing)} is missing."
        )
    try:
        processes, process = int(count), int(number)
    except ValueError:
        raise ValueError(f"process {number!r} of {count!r}: expected two whole numbers.") from None
    if not 0 <= process < processes:
        raise ValueError(f"there is no process {process} of {processes}; they count from 0.")
    return str(address), processes, process


def on_cloud_tpu() -> bool:
    """Whether this host is part of a Cloud TPU slice. Looks at files only: it does not open the chips."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = any(any(Path("/dev").glob(name)) for name in ("accel[0-9]*", "vfio/[0-9]*"))
    return chips and importlib.util.find_spec("libtpu") is not None


def wait(name: str) -> None:
    """Wait until every process has called this with the same name."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)


def first_says(answer: bool) -> bool:
    """The answer of the first process, on every process.

    For questions about files, since the processes may not share a disk.
    """
    if jax.process_count() == 1:
        return answer
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return bool(broadcast_one_to_all(np.asarray(answer)))


def digest_of_first(make: Callable[[], str]) -> str:
    """A digest of 64 digits that the first process makes, on every process: files are read once."""
    if jax.process_count() == 1:
        return make()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = make() if jax.process_index() == 0 else "0" * 64
    return bytes(np.asarray(broadcast_one_to_all(np.frombuffer(text.encode(), np.uint8)))).decode()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Run a block on the first process and then on the others, which find what it has written."""
    if jax.process_index() > 0:
        wait("first process first")
    yield
    if jax.process_index() == 0:
        wait("first process first")
