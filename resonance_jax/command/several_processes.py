"""A command that several processes run together: they join, one speaks, and one has the run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from resonance_jax.command.options import Dataclass
from resonance_jax.command.run_folder import open_run
from resonance_jax.command.signals import leave_on_signals
from resonance_jax.files import FilePath, reachable

if TYPE_CHECKING:
    from jax.sharding import Mesh


@contextlib.contextmanager
def together() -> Iterator[int]:
    """Join the other processes, if there are any; inside the block the first one alone prints.

    Gives the number of this process.
    """
    from resonance_jax.parallel import distributed

    number = distributed.start()
    leave_on_signals()  # joining the others may have put another handler there
    if number == 0:
        yield number
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield number


def open_run_of_first(study: str, config: Dataclass) -> FilePath:
    """`open_run` on the first process, which alone locks the folder and writes its config; its path on every
    process. What it refuses is refused on every process."""
    from resonance_jax.parallel import distributed

    return reachable(distributed.of_first(lambda: str(open_run(study, config))))


def decoding_mesh(tensor: int) -> Mesh | None:
    """The mesh over all devices of which `tensor` cut heads, MLP and vocabulary (-1: all); None for 0.

    Raises ValueError for several processes without a mesh, and for a number that does not divide the devices.
    """
    from jax import process_count

    from resonance_jax.parallel.mesh import make_mesh

    if tensor == 0:
        if process_count() > 1:
            raise ValueError(
                "several processes answer together over a mesh that spans them; give --tensor -1."
            )
        return None
    return make_mesh(data=1 if tensor == -1 else -1, tensor=tensor)
