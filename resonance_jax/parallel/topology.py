"""The devices of a TPU slice that is not there, so that the TPU's own compiler can compile for it.

libtpu, which `pip install "jax[tpu]"` brings, holds the compiler. It needs no chip: programs are compiled and
not run. Nothing can be allocated on these devices.
"""

import functools
import importlib.util
import math
import os
import re

import jax
from jax.sharding import Mesh

from resonance_jax.parallel.mesh import Device, slices_of

CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
"""What a slice's name begins with; the chips along each side follow, as in v5p:2x2x2."""
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
SIDES = {"v4": DEEP, "v5e": FLAT, "v5p": DEEP, "v6e": FLAT}
"""By chip, the slices that Google Cloud offers: the chips along each side."""
NEEDS = (
    "the TPU's compiler is not installed; pip install 'jax[tpu]' brings it (libtpu), and no TPU is needed."
)
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these libtpu asks Google Cloud about the machine, for minutes, and refuses a second process, as if
it were to open chips. They say nothing of the slice."""


def has_compiler() -> bool:
    """Whether the TPU's compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def without_a_tpu() -> None:
    """Make this process one that only compiles. Call it before jax first looks at devices.

    Raises ValueError where the compiler is not installed.
    """
    if not has_compiler():
        raise ValueError(NEEDS)
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def chip_of(name: str) -> str:
    """The chip of a slice's name: v5p of "v5p:2x2x2". Raises ValueError for what is no such name."""
    chip, _, sides = name.partition(":")
    if chip not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sides):
        raise ValueError(
            f"there is no slice {name!r}; expected a chip of {', '.join(CHIPS)} and its sides, such as "
            "v5p:2x2x2 or v6e:4x4."
        )
    return chip


def slice_named(chip: str, chips: int) -> str | None:
    """The name of the slice with `chips` chips, such as "v6e:4x4" with 16; None where there is none."""
    sizes = {math.prod(map(int, sides.split("x"))): sides for sides in SIDES.get(chip, ())}
    return f"{chip}:{sizes[chips]}" if chips in sizes else None


@functools.cache
def absent_devices(name: str, slices: int = 1) -> tuple[Device, ...]:
    """The devices of one slice, or of several equal ones that a data centre's network joins.

    Args:
        name: of the slice, such as "v5p:2x2x2" or "v6e:4x4".
        slices: how many of them.

    Raises:
        ValueError: the compiler is not installed, or knows no such slice.
    """
    from jax.experimental import topologies

    chip = chip_of(name)
    if slices < 1:
        raise ValueError(f"--slices must be at least 1, got {slices}.")
    without_a_tpu()
    # A v4 chip's two cores are one device for jax, but not by themselves for the compiler.
    cores = {"chip_config_name": "megacore"} if chip == "v4" else {}
    try:
        made = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices, **cores)
    except Exception as error:  # of several kinds, by version
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"the TPU's compiler cannot describe a slice {name}: {said}.") from error
    return tuple(made.devices)


def per_slice(mesh: Mesh) -> int:
    """How many of a mesh's devices each slice has; 0 where they are all of one."""
    slices = slices_of(mesh.devices.flat)
    return 0 if slices == 1 else mesh.size // slices
