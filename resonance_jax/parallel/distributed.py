"""Several processes as one program: found by themselves where a launcher started them, told by three values
elsewhere.

On a Cloud TPU slice every host runs the same command and finds the others by itself; so does every process
that Slurm (srun), Open MPI (mpirun) or an indexed Kubernetes job has started. Elsewhere (GPUs on several
machines, two processes on one) give the address of the first process, how many there are and which this one
is, as arguments or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import jax
import numpy as np

Made = TypeVar("Made")
"""None, a bool, a number, text, or lists of these and dicts of them by text: what JSON gives back."""
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
LAUNCHERS = {
    "Slurm": (
        "SLURM_NTASKS",
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    ),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK")),
}
"""What jax can join by itself: the variable that counts the processes, and the others that it reads."""


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> int:
    """Join the other processes of a run. Call it before anything looks at devices.

    A process that is told of no others, by a launcher either, and is not on a Cloud TPU, goes on alone.

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
    elif on_cloud_tpu() or launcher() is not None:
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


def launcher() -> str | None:
    """The launcher that started this process with others that jax finds by itself; None: there is none.

    A launcher that started one process only has nothing to join.
    """
    for name, (count, others) in LAUNCHERS.items():
        several = os.environ.get(count, "").isdigit() and int(os.environ[count]) > 1
        if several and all(variable in os.environ for variable in others):
            return name
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    return "Kubernetes" if indexed and importlib.util.find_spec("kubernetes") is not None else None


def wait(name: str) -> None:
    """Wait until every process has called this with the same name."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)


def of_first(make: Callable[[], Made]) -> Made:
    """What the first process makes, on every process.

    For what is on a disk, which the processes may not share: files are read once, and all go on alike.

    Args:
        make: called on the first process only. A ValueError or OSError of it is raised on every process, so
            that none waits for the others.
    """
    if jax.process_count() == 1:
        return make()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data, raised = b"", None
    if jax.process_index() == 0:
        try:
            data = json.dumps([make(), None]).encode()
        except (ValueError, OSError) as error:
            data, raised = json.dumps([None, str(error)]).encode(), error
    size = int(broadcast_one_to_all(np.int64(len(data))))
    mine = np.zeros(size, np.uint8)
    mine[: len(data)] = np.frombuffer(data, np.uint8)
    made, said = json.loads(np.asarray(broadcast_one_to_all(mine)).tobytes())
    if raised is not None:
        raise raised
    if said is not None:
        raise ValueError(said)
    return made


def first_says(answer: bool) -> bool:
    """The answer of the first process, on every process."""
    return of_first(lambda: answer)


def check_shared(folder: Path) -> None:
    """Raise ValueError where the processes, which are to write to a folder together, see different ones."""
    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    name = of_first(lambda: f".shared-{uuid4().hex}")
    mark = folder / name
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    wait(name)
    seen = np.asarray(process_allgather(np.asarray(mark.exists())))
    if jax.process_index() == 0:
        mark.unlink()
    if not seen.all():
        raise ValueError(
            f"{folder} is not the same on all {len(seen)} processes, and each writes its part of a "
            "checkpoint there: give a folder on a disk that they share, or --checkpoint-dir gs://…"
        )


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Run a block on the first process and then on the others, which find what it has written."""
    if jax.process_index() > 0:
        wait("first process first")
    yield
    if jax.process_index() == 0:
        wait("first process first")
