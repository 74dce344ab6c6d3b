"""The device mesh, and which logical axis of an array lies along which mesh axis.

Four mesh axes: `data` (replicas), `fsdp` (batch and parameters together), `tensor` (heads, MLP,
vocabulary), `sequence` (time). A logical axis names what a dimension means; RULES is the only place that
says where it lies. A dimension that its mesh axes do not divide stays whole.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices=None) -> Mesh:
    """A mesh over all devices (or those given). One size may be -1: what is left.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor, sequence]
    known = 1
    for size in sizes:
        known *= size if size != -1 else 1
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    product = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    if min(sizes) < 1 or product != len(devices):
        asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(f"the mesh {asked} needs {product} devices, but there are {len(devices)}.")
    # Auto, not the default Explicit: the compiler propagates shardings through contractions.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Where an array of this shape with these logical axes lies on the mesh."""
    used: list[str | tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(name for name in RULES.get(axis, ()) if mesh.shape[name] > 1)
        count = 1
        for name in names:
            count *= mesh.shape[name]
        used.append(names if names and size % count == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*used))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Inside a trace: x, held to where its logical axes lie on the mesh that the trace's arrays lie on.

    x itself without such a mesh, and inside `jax.shard_map`, where x is one device's part.
    """
    mesh = jax.typeof(x).sharding.mesh
    automatic = {
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    }
    if mesh.size == 1 or not automatic.issuperset(AXES):
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, axes, x.shape))
