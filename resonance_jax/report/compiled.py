"""What the TPU's compiler made of a program, on the terminal and as JSON."""

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version

from resonance_jax.files import FilePath, write_json
from resonance_jax.parallel.compiled import Compiled
from resonance_jax.report.tables import print_table

FILE = "tpu_compile.json"
"""The name of the JSON file in a run folder."""


def show_compiled(result: Compiled) -> None:
    """Print what a device holds, what the devices send each other, which kernels and products there are."""
    if result.fits:
        print_table(result.rows())
    if result.collectives:
        print_table(result.sent(), "What the devices send each other")
    print(f"attention: {result.attention}; Mosaic kernels: {', '.join(result.kernels) or 'none'}")
    print("products: " + "; ".join(f"{count} of {kind}" for kind, count in result.products.items()))


def keep_compiled(folder: FilePath, result: Compiled, setting: Mapping[str, object]) -> None:
    """Write tpu_compile.json: what was compiled (`setting`), what came out, and the versions that did it."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    whole = {**setting, "attention": result.attention, **dataclasses.asdict(result), "versions": versions}
    write_json(folder / FILE, whole)
