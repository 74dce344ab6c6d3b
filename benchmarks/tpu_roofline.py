"""What bounds a step of the paper's presets on TPU slices: planned on paper from compiled programs.

    nice python benchmarks/tpu_roofline.py              (compile what is missing, each about a minute)
    nice python benchmarks/tpu_roofline.py --table      (compile nothing: write the table anew)

No TPU is needed. The FLOPs of a step are a formula (train.flops and what remat recomputes), the bytes that
chips send each other are those of the compiled program's collectives, and peaks and bandwidths are what
Google publishes. Nothing ran: the times are the least that each of the three could take.
"""

import argparse
import sys

from tpu_plan import FOLDER, SEVEN, THIRTEEN, Setting, compile_missing, decoder, planned

from resonance_jax.files import read_json, write_text

BANDWIDTHS = {"v5e": (400e9, 6.4e12 / 256), "v5p": (1200e9, 50e9), "v6e": (800e9, None)}
"""Of a chip, as docs.cloud.google.com/tpu/docs publishes them: bytes a second over all its links to other
chips, both ways together, and bits a second over the data centre's network (of v5e a pod's by its 256
chips)."""
PRESETS = {
    "7b-long": (SEVEN, 32_768),
    "7b-short": (SEVEN, 4096),
    "13b-long": (THIRTEEN, 16_384),
    "13b-short": (THIRTEEN, 4096),
}
"""Name -> (shape, length) of the paper's settings; YaRN and Resonance YaRN are the same program."""
SIZES = {
    SEVEN: [("v5p:2x2x2", 1, {"fsdp": 8}), ("v6e:4x4", 1, {"fsdp": 16})],
    THIRTEEN: [("v5p:2x2x4", 1, {"fsdp": 16}), ("v6e:4x8", 1, {"fsdp": 32})],
}
"""The least slices that a model fits on."""
BOTH = [("v5p:4x4x4", 1, {"fsdp": 64}), ("v5p:2x4x4", 2, {"data": 2, "fsdp": 32})]
"""64 chips: as one slice, and as two."""


def settings():
    """(preset, setting) of every row."""
    for preset, (shape, length) in PRESETS.items():
        for name, slices, mesh in SIZES[shape] + BOTH:
            yield preset, Setting(shape, False, name, mesh, length, slices=slices)
            if length == 4096 and slices == 1 and mesh["fsdp"] < 64:
                # Short rows: the whole batch at once gathers the weights once a step.
                yield preset, Setting(shape, False, name, mesh, length, micro=64)


def row(preset, setting):
    """The table's row of a setting; None where it was not compiled or does not fit."""
    path = FOLDER / f"{setting.name}.json"
    if not path.exists() or not (found := read_json(path))["fits"]:
        return None
    from resonance_jax.train import flops

    chip = setting.slice.partition(":")[0]
    kind = {"v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e"}[chip]
    peak, made = flops.peak(kind), planned(setting)
    model = setting.rows * setting.length * flops.per_token(decoder(setting), setting.length)
    sent = {across: 0 for across in (False, True)}
    for one in found["collectives"]:
        sent[bool(one["across"])] += one["bytes"]
    both_ways, network = BANDWIDTHS[chip]
    compute = made.flops / found["devices"] / peak
    ici = sent[False] / (both_ways / 2 * links(setting))
    dcn = 0.0 if not sent[True] else None if network is None else sent[True] / (network / 8)
    least = max(compute, ici, dcn or 0.0)
    over = sorted({one["kind"] for one in found["collectives"] if one["across"]})
    share = lambda seconds: f"{model / found['devices'] / peak / seconds:.0%}"
    return {
        "preset": preset,
        "slice": f"{setting.slices} x {setting.slice}" if setting.slices > 1 else setting.slice,
        "mesh": " x ".join(f"{axis} {size}" for axis, size in setting.mesh.items()),
        "rows at a time": found["micro"],
        "GiB a chip": round(found["peak_bytes"] / 2**30, 1),
        "compute, s": round(compute, 2),
        "ICI, GB": round(sent[False] / 1e9, 1),
        "ICI, s": round(ici, 2),
        "DCN, GB": round(sent[True] / 1e9, 2),
        "DCN, s": "" if dcn is None else round(dcn, 2),
        "over DCN": ", ".join(over) or "nothing",
        "bound by": {compute: "compute", ici: "ICI", dcn: "DCN"}[least],
        "MFU at most": share(least),
        "MFU if nothing is hidden": share(compute + ici + (dcn or 0.0)),
        "instructions": found["instructions"],
        "compiled in, s": round(found["seconds"]["compile"]),
    }


def links(setting):
    """The share of a chip's links that a slice uses, on average over its chips: a side is a ring only in a
    v5p slice of whole cubes (4 x 4 x 4), and of v5e and v6e where it is as long as the pod's (16)."""
    chip, _, sides = setting.slice.partition(":")
    sides = [int(n) for n in sides.split("x")]
    cubes = all(n % 4 == 0 for n in sides)
    used = [2 if (cubes if chip == "v5p" else n == 16) else 2 * (n - 1) / n for n in sides]
    return sum(used) / (2 * len(sides))


ABOUT = """# A step's bound, planned on paper from compiled programs

Nothing here ran on a TPU. Each row is one optimizer step of 64 rows, compiled by the TPU's own compiler for
a slice that was not there (`benchmarks/tpu_roofline.py`). *compute*: the step's FLOPs, recomputation
included, at the chip's published dense peak. *ICI*, *DCN*: the bytes that the compiled program's
collectives give a chip, between chips of a slice and between slices, and how long they take at the
published bandwidth, one way; of ICI over those of a chip's links that the slice uses. *MFU at most*: the
model's FLOPs, without recomputation, over the peak for as long as the longest of the three takes, which
supposes that it hides the other two; the column after it supposes that nothing hides anything. An
all-reduce counts once, though its bytes travel twice. A real step is slower than both suppose: products do
not reach the peak.

"""


def table():
    """Write the table of what was compiled; returns its rows."""
    from resonance_jax.report.tables import csv_text, markdown

    rows = [made for preset, setting in settings() if (made := row(preset, setting)) is not None]
    if rows:
        write_text(FOLDER / "roofline.csv", csv_text(rows))
        write_text(FOLDER / "roofline.md", ABOUT + markdown(rows))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so long")
    arguments = parser.parse_args()
    every = [setting for _, setting in settings()]
    if not arguments.table:
        compile_missing(every, arguments.seconds, lambda setting: setting.slice)
    print(f"{len(table())} of {len(every)} settings: {FOLDER}/roofline.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
