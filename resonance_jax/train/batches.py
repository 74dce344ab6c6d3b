"""The batches of one run: how they are read, cut into micro-batches, and placed on a mesh."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from resonance_jax.parallel.mesh import sharding
from resonance_jax.train.step import Batch

MICRO_POSITIONS = 1024
"""Positions of a micro-batch that a device should have, where short rows allow it."""


def micro_rows(rows: int, length: int, shards: int) -> int:
    """Rows of a micro-batch: one a shard, or as many as make up MICRO_POSITIONS; a divisor of `rows`."""
    each = max(1, rows // shards)
    most = max(1, MICRO_POSITIONS // length)
    return shards * max(n for n in range(1, each + 1) if each % n == 0 and n <= most)


def size(batches) -> tuple[int, int]:
    """(rows B, length T) of every batch."""
    if hasattr(batches, "rows"):
        return batches.batch_size, batches.length
    return np.shape(batches(0)["tokens"])


def reader(batches) -> Callable[..., Batch]:
    """read(step, start, stop) -> those rows of the step's batch, on the host."""
    if hasattr(batches, "rows"):
        return lambda step, start, stop: {"tokens": batches.rows(step, start, stop)}
    return lambda step, start, stop: {k: np.asarray(v)[start:stop] for k, v in batches(step).items()}


def place_batch(read: Callable[[int, int], Batch], rows: int, length: int, mesh) -> Batch:
    """The batch on the devices; only the rows of this process's own devices are read."""
    remembered = functools.lru_cache(maxsize=None)(read)
    if mesh is None:
        return jax.device_put(remembered(0, rows))

    shape = rows, length
    where = sharding(mesh, ("batch", "time"), shape)

    def part(index) -> Batch:
        start, stop, _ = index[0].indices(rows)
        return {name: x[:, index[1]] for name, x in remembered(start, stop).items()}

    own = next(iter(where.addressable_devices_indices_map(shape).values()))
    return {
        name: jax.make_array_from_callback(shape, where, lambda index, name=name: part(index)[name])
        for name in part(own)
    }


def check_rows(rows: int, micro: int, mesh) -> None:
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    for what, count in (("a batch", rows), ("a micro-batch", micro or rows)):
        if count % shards:
            raise ValueError(
                f"{what} of {count} rows cannot be cut over {shards} devices (data x fsdp of the mesh); "
                f"choose a multiple of {shards}."
            )
    if micro and rows % micro:
        raise ValueError(f"a batch of {rows} rows cannot be cut in micro-batches of {micro}.")
