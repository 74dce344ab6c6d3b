"""The mesh of a training: devices that have no rows to work on cut time instead."""

import math

import jax
from jax.sharding import Mesh

from resonance_jax.parallel.mesh import fill, make_mesh
from resonance_jax.settings.mesh import MeshConfig


def sizes_for_rows(mesh: MeshConfig, devices: int, rows: int) -> dict[str, int]:
    """The mesh's sizes by axis over so many devices, for batches of so many rows.

    Where an axis of -1, `data` or `fsdp`, would get more devices than there are rows, the rest go to
    `sequence`. Raises ValueError when the sizes do not multiply to the number of devices.
    """
    sizes = fill(devices, mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence)
    shards = sizes["data"] * sizes["fsdp"]
    used = math.gcd(shards, rows)
    for axis in ("data", "fsdp"):
        others = shards // sizes[axis]
        if getattr(mesh, axis) == -1 and mesh.sequence == 1 and used % others == 0:
            sizes |= {axis: used // others, "sequence": shards // used}
    return sizes


def training_mesh(mesh: MeshConfig, rows: int) -> Mesh | None:
    """The mesh of these sizes over all devices, for batches of so many rows; None on a single device."""
    sizes = sizes_for_rows(mesh, jax.device_count(), rows)
    return make_mesh(devices=None, **sizes) if max(sizes.values()) > 1 else None
