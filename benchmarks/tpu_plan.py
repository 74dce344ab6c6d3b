"""The plan's bytes beside those of the TPU's own compiler, setting by setting; no TPU is needed.

    nice python benchmarks/tpu_plan.py                  (settings that the formula was fitted to)
    nice python benchmarks/tpu_plan.py --held-out       (settings that are compiled once it is frozen)
    nice python benchmarks/tpu_plan.py --table          (compile nothing: write the table anew)

Needs pip install "jax[tpu]". One setting after the other, each about a minute of two cores. Each is written
when it is done, and what is there is not compiled again, so it can be stopped at any time.
"""

import argparse
import dataclasses
import sys
import time
from importlib.metadata import version
from pathlib import Path

from beside import RESULTS

from resonance_jax.files import read_json, write_json, write_text

FOLDER = RESULTS / "tpu_compile"
WITHIN = 0.10
"""The relative error that a plan may have where the compiler gives a number."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """shape: of model.PRESETS. lora: adapters or all parameters. slice: of TPUs. mesh: sizes by axis. slices:
    how many such slices, over which the axis data goes."""

    shape: str
    lora: bool
    slice: str
    mesh: dict
    length: int
    rows: int = 64
    micro: int = 0
    remat: str = "full"
    slices: int = 1

    @property
    def name(self):
        mesh = "-".join(f"{axis}{size}" for axis, size in self.mesh.items())
        parts = [
            self.shape,
            "lora" if self.lora else "full",
            self.slice.replace(":", "-"),
            mesh,
            str(self.length),
        ]
        parts += [f"micro{self.micro}"] * (self.micro > 0) + [f"remat-{self.remat}"] * (self.remat != "full")
        parts += [f"slices{self.slices}"] * (self.slices > 1)
        return "_".join(parts)


SEVEN, THIRTEEN, EIGHT = "llama2-7b", "llama2-13b", "llama3.1-8b"
FITTED = [
    Setting(SEVEN, False, "v5p:2x2x2", {"fsdp": 8}, 32_768),
    Setting(SEVEN, True, "v5e:2x4", {"fsdp": 8}, 4096),
    Setting(SEVEN, False, "v6e:4x4", {"fsdp": 4, "sequence": 4}, 32_768),
    Setting(THIRTEEN, False, "v5p:2x2x4", {"fsdp": 16}, 16_384),
    Setting(EIGHT, False, "v5p:2x2x2", {"fsdp": 4, "tensor": 2}, 8192),
    Setting(SEVEN, False, "v6e:4x4", {"fsdp": 16}, 32_768),
    Setting(SEVEN, False, "v5e:4x4", {"fsdp": 16}, 32_768),
    Setting(SEVEN, True, "v6e:2x4", {"fsdp": 8}, 32_768),
    Setting(THIRTEEN, False, "v6e:4x4", {"fsdp": 16}, 4096),
    Setting(SEVEN, False, "v5p:2x2x4", {"fsdp": 4, "sequence": 4}, 131_072, 8),
    Setting(SEVEN, False, "v5p:2x2x2", {"tensor": 8}, 4096),
    Setting(EIGHT, True, "v5e:4x4", {"fsdp": 16}, 8192),
    Setting(SEVEN, False, "v5e:4x4", {"fsdp": 16}, 4096),
    Setting(SEVEN, False, "v5p:2x2x2", {"sequence": 8}, 32_768, 8),
    Setting(THIRTEEN, True, "v6e:2x4", {"fsdp": 8}, 16_384),
    Setting(EIGHT, False, "v6e:4x4", {"fsdp": 16}, 16_384),
    Setting(SEVEN, False, "v4:2x2x4", {"fsdp": 16}, 4096),
    Setting(THIRTEEN, False, "v5p:2x2x4", {"fsdp": 8, "tensor": 2}, 4096),
    Setting(SEVEN, False, "v6e:4x4", {"fsdp": 8, "tensor": 2}, 16_384),
    Setting(SEVEN, False, "v5p:2x2x2", {"fsdp": 8}, 4096, micro=32),
    Setting(EIGHT, False, "v5p:2x2x4", {"fsdp": 4, "sequence": 4}, 65_536, 16),
    Setting(SEVEN, True, "v4:2x2x2", {"fsdp": 8}, 16_384),
    Setting(SEVEN, False, "v5p:2x2x2", {"fsdp": 8}, 16_384, remat="attention"),
    Setting(THIRTEEN, True, "v5e:4x4", {"fsdp": 16}, 32_768),
]
HELD_OUT = [
    Setting(SEVEN, False, "v5p:2x2x2", {"fsdp": 8}, 16_384),
    Setting(THIRTEEN, False, "v5p:2x2x4", {"fsdp": 16}, 4096),
    Setting(EIGHT, False, "v5p:2x2x2", {"fsdp": 8}, 32_768),
    Setting(SEVEN, True, "v5e:2x4", {"fsdp": 8}, 16_384),
    Setting(THIRTEEN, False, "v6e:4x4", {"fsdp": 16}, 16_384),
    Setting(SEVEN, False, "v5p:2x2x4", {"fsdp": 8, "sequence": 2}, 65_536, 16),
    Setting(SEVEN, False, "v6e:4x4", {"fsdp": 16}, 8192),
    Setting(EIGHT, True, "v6e:2x4", {"fsdp": 8}, 16_384),
    Setting(SEVEN, False, "v5p:2x2x2", {"fsdp": 4, "tensor": 2}, 16_384),
    Setting(THIRTEEN, True, "v5p:2x2x2", {"fsdp": 8}, 32_768),
    Setting(EIGHT, False, "v5e:4x4", {"fsdp": 16}, 4096),
    Setting(SEVEN, False, "v4:2x2x2", {"fsdp": 4, "tensor": 2}, 8192),
]


def compiled(setting):
    """Compile one setting and keep what came out."""
    from resonance_jax import rope, train
    from resonance_jax.parallel.mesh import make_mesh
    from resonance_jax.parallel.topology import absent_devices
    from resonance_jax.train.batches import micro_rows
    from resonance_jax.train.compiled_step import compile_step

    devices = absent_devices(setting.slice, setting.slices)
    mesh = make_mesh(devices=devices, **setting.mesh)
    config = decoder(setting)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    micro = setting.micro or micro_rows(setting.rows, setting.length, shards)
    spec = rope.RopeSpec("yarn", head_dim=config.head_dim, scale=8.0, train_length=4096, resonance=True)
    table = rope.frequencies(spec, length=setting.length)
    training = train.TrainConfig(50, train.OptimizerConfig(), micro=micro)
    lora = train.LoraConfig() if setting.lora else None
    result = compile_step(config, training, mesh, setting.rows, setting.length, table, lora)
    write_json(
        FOLDER / f"{setting.name}.json",
        {
            **dataclasses.asdict(setting),
            "devices": len(devices),
            "micro": micro,
            "attention": result.attention,
            **dataclasses.asdict(result),
            "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
        },
    )


def decoder(setting):
    from resonance_jax import model

    return model.PRESETS[setting.shape].replace(dtype="bfloat16", remat=setting.remat)


def compile_missing(settings, seconds, say):
    """Compile those of the settings that are not there, and begin none after so many seconds."""
    from resonance_jax.parallel.topology import NEEDS, has_compiler, without_a_tpu

    if not has_compiler():
        print(f"nothing is compiled: {NEEDS}")
        return
    without_a_tpu()
    began = time.monotonic()
    for setting in settings:
        if time.monotonic() - began > seconds:
            break
        if not (FOLDER / f"{setting.name}.json").exists():
            compiled(setting)
            print(setting.name, say(setting), flush=True)


def planned(setting):
    """The plan of a setting, on its chip."""
    from resonance_jax import train
    from resonance_jax.train.plan import chip, plan

    sizes = dict(data=1, fsdp=1, tensor=1, sequence=1) | setting.mesh
    lora = train.LoraConfig() if setting.lora else None
    kind = chip(setting.slice.partition(":")[0])
    return plan(decoder(setting), sizes, setting.rows, setting.length, setting.micro, lora, kind)


def row(setting):
    """The table's row of a setting; None where it was not compiled."""
    path = FOLDER / f"{setting.name}.json"
    if not path.exists():
        return None
    made, found = planned(setting), read_json(path)
    gib = lambda n: "" if n is None else round(n / 2**30, 2)
    error = made.total / found["peak_bytes"] - 1 if found["fits"] else None
    return {
        "model": f"{setting.shape}, {'LoRA' if setting.lora else 'full'}",
        "slice": setting.slice,
        "mesh": " x ".join(f"{axis} {size}" for axis, size in setting.mesh.items()),
        "rows at a time x length": f"{found['micro']} x {setting.length:,}",
        "remat": setting.remat,
        "compiler, GiB": gib(found["peak_bytes"]) if found["fits"] else "refused",
        "plan, GiB": gib(made.total),
        "error": "" if error is None else f"{error:+.1%}",
        "plan says": {True: "fits", False: "does not fit", None: "compile to know"}[made.fits],
        "verdicts agree": "" if made.fits is None else "yes" if made.fits == found["fits"] else "NO",
    }


def table():
    """Write the table of what was compiled; returns its rows."""
    from resonance_jax.report.tables import csv_text, markdown

    rows = [
        {"part": part, **found}
        for part, settings in (("fitted", FITTED), ("held out", HELD_OUT))
        for setting in settings
        if (found := row(setting)) is not None
    ]
    if rows:
        write_text(FOLDER / "plan.csv", csv_text(rows))
        write_text(FOLDER / "plan.md", markdown(rows))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so long")
    arguments = parser.parse_args()
    if not arguments.table:
        compile_missing(HELD_OUT if arguments.held_out else FITTED, arguments.seconds, row)
    rows = table()
    print(f"{len(rows)} of {len(FITTED) + len(HELD_OUT)} settings were compiled: {Path(FOLDER)}/plan.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
