"""The batches of one run: how they are read ahead, cut into micro-batches, and placed on a mesh."""

import contextlib
import functools
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from resonance_jax.parallel.mesh import sharding
from resonance_jax.train.step import Batch, with_labels

Key = TypeVar("Key")
Placed = TypeVar("Placed")

MICRO_POSITIONS = 1024
"""The positions of a micro-batch that a device should get, where rows are shorter than that."""


def micro_rows(rows: int, length: int, shards: int) -> int:
    """How many rows a micro-batch should have: one per shard, or as many as make up MICRO_POSITIONS there.

    Args:
        rows, length: B and T of the whole batch.
        shards: the parts that the mesh cuts the rows of a batch into; a divisor of `rows`, as the result is.
    """
    each = max(1, rows // shards)
    most = max(1, MICRO_POSITIONS // length)
    return shards * max(n for n in range(1, each + 1) if each % n == 0 and n <= most)


@runtime_checkable
class RowReader(Protocol):
    """A source of equal batches [B, T] of which each process reads its own rows (data.Batches is one).

    Attributes:
        batch_size, length: B and T.
    """

    batch_size: int
    length: int

    def rows(self, step: int, start: int, stop: int) -> Int[np.ndarray, "rows T"]:
        """Tokens of the rows start … stop - 1 of the batch of a step."""
        ...


Batches = RowReader | Callable[[int], Batch]
"""What `fit` trains on: a RowReader, or a function step -> Batch. Equal steps must give equal batches."""

Reader = Callable[[int, int, int], Batch]
"""read(step, start, stop): the rows start … stop - 1 of the batch of a step."""


def size(batches: Batches) -> tuple[int, int]:
    """(rows B, length T) of every batch."""
    if isinstance(batches, RowReader):
        return batches.batch_size, batches.length
    rows, length = np.shape(batches(0)["tokens"])
    return rows, length


def reader(batches: Batches) -> Reader:
    """A function that reads rows of the batches on the host.

    It gives copies, because a source may reuse its array for the next step while the devices still read it.
    """
    if isinstance(batches, RowReader):
        return lambda step, start, stop: {"tokens": np.array(batches.rows(step, start, stop))}
    return lambda step, start, stop: {
        k: np.array(np.asarray(v)[start:stop]) for k, v in batches(step).items()
    }


class Ahead(Generic[Key, Placed]):
    """Prepares each batch one step ahead, while the devices work on the one before.

    Args:
        make: make(key) gives the batch of a key, the same one for the same key.
    """

    def __init__(self, make: Callable[[Key], Placed]) -> None:
        self._make = make
        self._ready: tuple[Key, Placed] | None = None

    def prepare(self, key: Key) -> None:
        """Make the batch that is taken next. An error is raised only when that batch is taken, so that the
        steps before it are finished and logged first."""
        self._ready = None
        with contextlib.suppress(Exception):
            self._ready = key, self._make(key)

    def take(self, key: Key) -> Placed:
        """The batch of a key, which is made now unless it was prepared."""
        ready, self._ready = self._ready, None
        return ready[1] if ready is not None and ready[0] == key else self._make(key)


def place_batch(
    read: Callable[[int, int], Batch], rows: int, length: int, mesh: Mesh | None
) -> dict[str, Int[Array, "B T"]]:
    """Put a batch on the devices, with its labels (see with_labels).

    Args:
        read: read(start, stop) gives the rows start … stop - 1; only rows of this process's devices are read.
        rows, length: B and T of the whole batch.
        mesh: its data x fsdp cut the rows, its sequence cuts time; None: one device.

    Raises:
        ValueError: the batch has another shape, or arrays that do not belong together.
    """

    @functools.cache
    def labelled(start: int, stop: int) -> dict[str, Int[np.ndarray, "rows T"]]:
        # Labels are made before time is cut: a piece of a row lacks the token that its last one predicts.
        batch = {name: np.asarray(x) for name, x in with_labels(read(start, stop)).items()}
        if batch["tokens"].shape != (stop - start, length):
            raise ValueError(
                f"expected {stop - start} rows of {length} tokens, as the batch of step 0 has them, got "
                f"{list(batch['tokens'].shape)}."
            )
        return batch

    if mesh is None:
        return jax.device_put(labelled(0, rows))
    shape = rows, length
    where = sharding(mesh, ("batch", "time"), shape)

    def part(index: tuple[slice, ...] | None) -> dict[str, Int[np.ndarray, "rows columns"]]:
        rows_here, columns = index or (slice(None), slice(None))
        start, stop, _ = rows_here.indices(rows)
        return {name: x[:, columns] for name, x in labelled(start, stop).items()}

    own = next(iter(where.addressable_devices_indices_map(shape).values()))
    return {
        name: jax.make_array_from_callback(shape, where, lambda index, name=name: part(index)[name])
        for name in part(own)
    }


def check_rows(rows: int, micro: int, mesh: Mesh | None) -> None:
    """Raise ValueError for rows or micro-batches that the mesh does not divide evenly."""
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    for what, count in (("a batch", rows), ("a micro-batch", micro or rows)):
        if count % shards:
            raise ValueError(
                f"{what} of {count} rows cannot be cut over {shards} devices (data x fsdp of the mesh); "
                f"choose a multiple of {shards}."
            )
    if micro and rows % micro:
        raise ValueError(f"a batch of {rows} rows cannot be cut in micro-batches of {micro}.")
