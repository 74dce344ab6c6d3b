"""Meshes for few rows: devices for which no row is left cut time instead, in training and in scoring."""

import math
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from resonance_jax.parallel.mesh import fill, make_mesh
from resonance_jax.settings.mesh import MeshConfig

Weights = TypeVar("Weights")
"""A pytree of arrays."""


def sizes_for_rows(mesh: MeshConfig, devices: int, rows: int) -> dict[str, int]:
    """The mesh's sizes by axis, for a number of devices and of rows in a batch.

    Where `data` or `fsdp`, given as -1, would get more devices than there are rows, the rest go to
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
    """The mesh of a training over all devices, for batches of `rows` rows; None on a single device."""
    sizes = sizes_for_rows(mesh, jax.device_count(), rows)
    return make_mesh(devices=None, **sizes) if max(sizes.values()) > 1 else None


def time_instead_of_rows(mesh: Mesh, ways: int) -> Mesh:
    """The same devices as a mesh with `ways` times fewer along `data` and `ways` times more along `sequence`.

    Each device keeps its place along `fsdp` and `tensor`, and with it its part of the weights.

    Args:
        mesh: over the four axes.
        ways: a divisor of the size of `data`.
    """
    data, fsdp, tensor, sequence = mesh.devices.shape
    split = mesh.devices.reshape(data // ways, ways, fsdp, tensor, sequence).transpose(0, 2, 3, 1, 4)
    devices = split.reshape(data // ways, fsdp, tensor, ways * sequence)
    return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


def same_parts(params: Weights, there: PyTree[NamedSharding], here: PyTree[NamedSharding]) -> Weights:
    """Put weights on another mesh on which each device holds the same part of them: nothing is copied.

    Args:
        params: a pytree of arrays.
        there: the sharding of each on the mesh that they lie on.
        here: the sharding of each on the other mesh.
    """

    def moved(x: jax.Array, here: NamedSharding) -> jax.Array:
        parts = [part.data for part in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, here, parts)

    return jax.tree.map(moved, jax.device_put(params, there), here)
