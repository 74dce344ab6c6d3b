"""The device mesh, and which logical axis of an array lies along which mesh axis.

Four mesh axes: `data` (replicas), `fsdp` (batch and parameters together), `tensor` (heads, MLP,
vocabulary), `sequence` (time). A logical axis names what a dimension means; RULES is the only place that
says where it lies. A dimension that its mesh axes do not divide stays whole.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, PyTree, Shaped

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib comes without its type
AXES = ("data", "fsdp", "tensor", "sequence")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "norm": (),
}


def fill(devices: int, data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> dict[str, int]:
    """The size of every mesh axis over a number of devices.

    Args:
        devices: how many devices the mesh has.
        data, fsdp, tensor, sequence: the sizes of its axes. One of them may be -1: it gets the devices that
            the others leave.

    Returns:
        The sizes by axis, in the order of AXES.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor, sequence]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if min(sizes) < 1 or math.prod(sizes) != devices:
        asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(f"the mesh {asked} needs {math.prod(sizes)} devices, but there are {devices}.")
    return dict(zip(AXES, sizes, strict=True))


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    devices: Sequence[Device] | None = None,
) -> Mesh:
    """A mesh with the four axes of this package.

    Args:
        data, fsdp, tensor, sequence: the sizes of its axes, as in `fill`.
        devices: what it is made of; default all devices of all processes. Of several TPU slices, `data` goes
            over the slices, so that what is sent often stays within one.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or the slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = tuple(fill(len(devices), data, fsdp, tensor, sequence).values())
    slices = slices_of(devices)
    # Auto, not the default Explicit: the compiler propagates shardings through contractions.
    kinds = (AxisType.Auto,) * 4
    if slices > 1 and sizes[0] % slices:
        raise ValueError(
            f"over {slices} slices the mesh's data axis must be a multiple of {slices}, got {sizes[0]}; give "
            f"--data {slices}."
        )
    try:
        if slices == 1:
            return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices)
        return Mesh(_over_slices(sizes, slices, devices), AXES, axis_types=kinds)
    except NotImplementedError:
        # No side of the slice is as long as an axis: fsdp 8 x tensor 2 on 4 x 4 chips. jax must be told that
        # it may go over parts of sides.
        return Mesh(_over_slices(sizes, slices, devices, split=True), AXES, axis_types=kinds)


def _over_slices(
    sizes: tuple[int, ...], slices: int, devices: Sequence[Device], split: bool = False
) -> np.ndarray:
    """The devices as an array of these sizes, `data` over the slices, the others within one."""
    from jax.experimental import mesh_utils

    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=split)
    within, between = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=split)


def slices_of(devices: Iterable[Device]) -> int:
    """How many TPU slices the devices are spread over; 1 for other devices."""
    return len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}) or 1


def sharding(
    mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """The sharding that says where an array lies on a mesh.

    Args:
        mesh: the mesh.
        axes: the logical axis of each dimension, a name in RULES, or None for a dimension that stays whole.
        shape: the array's.
    """
    used: list[str | tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        rule = () if axis is None else RULES.get(axis, ())
        names = tuple(name for name in rule if mesh.shape[name] > 1)
        count = 1
        for name in names:
            count *= mesh.shape[name]
        used.append(names if names and size % count == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*used))


def placed(x: Shaped[np.ndarray, "*shape"], where: NamedSharding) -> Shaped[Array, "*shape"]:
    """What every process holds whole, as an array on a mesh that may span processes.

    Args:
        x: the same on every process.
        where: it is to lie.
    """
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def whole_everywhere(like: PyTree[Shaped[ArrayLike, "..."]], mesh: Mesh) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of arrays that lie whole on every device of a mesh, which need not be there."""
    where = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=where), like)


def automatic_axes(x: Shaped[Array, "..."]) -> dict[str, int]:
    """The mesh axes, by name and size, along which the compiler may cut x; for use inside a trace.

    There are none without a mesh, and none inside `jax.shard_map`, where x is one device's part. How x itself
    is cut is decided only when the whole program is compiled.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def constrain(
    x: Shaped[Array | np.ndarray, "*shape"], axes: tuple[str | None, ...]
) -> Shaped[Array, "*shape"]:
    """Make the compiler lay x out as RULES say of its logical axes; for use inside a trace.

    Without automatic axes (see `automatic_axes`) x is returned as it is.

    Args:
        x: an array of the trace.
        axes: the logical axis of each dimension, as in `sharding`.
    """
    x = jnp.asarray(x)
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size == 1 or not automatic_axes(x).keys() >= set(AXES):
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, axes, x.shape))
