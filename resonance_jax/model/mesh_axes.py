"""What a function being traced knows of the mesh that its arrays lie on."""

import jax
from jax.sharding import AxisType


def automatic_axes(x: jax.Array) -> dict[str, int]:
    """Name and size of the mesh axes along which the compiler may have cut x.

    Empty without a mesh, and inside `jax.shard_map`, where x is one device's part. How x itself is cut is
    decided only when the whole program is compiled.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind != AxisType.Manual}
