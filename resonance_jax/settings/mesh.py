"""The sizes of a device mesh; parallel.mesh makes a mesh of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Over how many devices each of the mesh's four axes goes.

    One of the sizes may be -1, which takes the devices that are left. Where `data` or `fsdp` would so get
    more devices than there are rows, the rest cut time (parallel.mesh_for_rows).
    """

    data: int = 1
    """Devices along the axis of replicas; -1, for one of the four axes, takes the devices that are left."""
    fsdp: int = -1
    """Devices along the axis that cuts rows and parameters together."""
    tensor: int = 1
    """Devices along the axis that cuts heads, MLP and vocabulary."""
    sequence: int = 1
    """Devices along the axis that cuts time."""
