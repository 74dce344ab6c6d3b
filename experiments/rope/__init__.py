"""Encodings looked at closely: explained, drawn, measured, exported.

    python -m experiments.rope explain CONFIG       what a config.json, a directory or a name means
    python -m experiments.rope show METHOD…         wavelengths, decay, feature gap, rotation angles; also of
                                                    a checkpoint, layer type by layer type
    python -m experiments.rope numerics             the error of cos and sin, ours and others'
    python -m experiments.rope export CHECKPOINT --encoding resonance-yarn --scale 8 --out DIR

configs/rope.py has every setting.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from configs.rope import Explain, Export, Numerics, Show
from experiments.rope.encodings import config_at, tables_of
from experiments.rope.export import export
from resonance_jax.command import open_run
from resonance_jax.files import write_json, write_text

if TYPE_CHECKING:
    from resonance_jax.rope import Frequencies, RopeSpec

BYTES_PER_PHASE = 32
"""What the pictures need for a pair at a position: several arrays of float64."""
ASKED = Explain | Show | Numerics | Export


def run(config: ASKED) -> int | None:
    """Run the command that was asked for."""
    _check(config)
    command = {Explain: explain, Show: show, Numerics: numerics, Export: export}
    return command[type(config)](config)


def _check(config: ASKED) -> None:
    """Raise ValueError for numbers that no option can be, before anything is made."""
    from resonance_jax.train.config import check_whole

    least = dict.fromkeys(("head_dim", "train_length", "length", "new_tokens", "last_position"), 1)
    least |= {"angles_train_length": 2, "angles_length": 2, "pair": 0}
    for name, smallest in least.items():
        if (value := getattr(config, name, None)) is not None:
            check_whole(f"--{name.replace('_', '-')}", value, smallest, 2**31)
    if config.scale is not None and not 1 <= config.scale <= 2**31:
        raise ValueError(f"--scale must be from 1 to 2^31, got {config.scale:g}.")
    if isinstance(config, Export) and not 0 < config.tolerance < math.inf:
        raise ValueError(f"--tolerance must be a positive number, got {config.tolerance}.")


def _check_memory(length: int, head_dim: int) -> None:
    """Raise ValueError where the pictures of so many positions would not fit into memory."""
    import jax

    from resonance_jax.parallel import memory

    free, needed = memory.free(jax.devices()[:1]), BYTES_PER_PHASE * length * (head_dim // 2)
    if free is not None and needed > free:
        raise ValueError(
            f"{length:,} positions need about {memory.readable(needed)} of memory, and "
            f"{memory.readable(free)} are free; choose a shorter --length."
        )


def explain(config: Explain) -> None:
    """Print what an encoding means, and how other programs understand it."""
    from resonance_jax import rope

    stated = config_at(config.config)
    if stated is not None:
        print(rope.explain(stated, length=config.length, layer_type=config.layer_type))
        return
    specs, _, length, _ = tables_of([config.config], config)
    for spec in specs.values():
        print(rope.explain(spec, length=length if spec.dynamic else None))


def records(specs: "dict[str, RopeSpec]", tables: "dict[str, Frequencies]") -> dict[str, object]:
    """The content of encodings.json: each encoding and its table, by label."""
    from resonance_jax import rope

    return {title: rope.to_record(tables[title], spec) for title, spec in specs.items()}


def show(config: Show) -> None:
    """Draw the encodings, write their figures down and print a summary."""
    from resonance_jax import report, rope
    from resonance_jax.report import rope as pictures

    specs, tables, length, made = tables_of(config.methods, config)
    _check_memory(length, made.head_dim)
    short, long = config.angles_train_length, config.angles_length
    plain = rope.frequencies(rope.RopeSpec(head_dim=made.head_dim, base=made.base))
    pair = config.pair
    if pair is None:
        pair = pictures.straying_pair(plain, short, long)
    # With and without Resonance, whichever was named.
    both = {
        twin.title + label.removeprefix(spec.title): rope.frequencies(twin, length=length)
        for label, spec in specs.items()
        for twin in (dataclasses.replace(spec, resonance=on) for on in (False, True))
    }
    pairs = pictures.pair_rows(tables, made.train_length, length)
    angles = pictures.angle_rows(both, pair, short, long)
    decays = pictures.decay_rows(tables, length)
    folder = open_run("rope-show", config)
    for name, rows in (("pairs", pairs), ("decay", decays), ("angles", angles)):
        write_text(folder / f"{name}.csv", report.csv_text(rows))
    pictures.wavelength_plot(pairs, folder / "wavelengths.png", made.train_length, length)
    pictures.gap_plot(pairs, folder / "feature_gap.png", made.train_length, length)
    pictures.decay_plot(decays, folder / "decay.png", made.train_length)
    pictures.angle_plot(angles, folder / "angles.png", short, long)
    write_json(folder / "encodings.json", records(specs, tables))
    table = pictures.summary(pairs, tables)
    write_json(folder / "show.json", {"rows": table, "machine": report.machine()})
    title = f"Trained at {made.train_length:,} positions, extended to {length:,}"
    report.print_table(table, title)
    names = ("wavelengths.png", "feature_gap.png", "decay.png", "angles.png")
    print("\n" + "  ".join(str(folder / name) for name in names))


def numerics(config: Numerics) -> None:
    """Measure the errors of cosines and sines, draw them and print a table."""
    from resonance_jax import report
    from resonance_jax.report import phase_error

    specs, tables, _, _ = tables_of(config.methods, config)
    positions = phase_error.doubling_positions(config.last_position)
    folder = open_run("rope-numerics", config)
    rows = phase_error.phase_error_rows(tables, positions)
    write_text(folder / "phase_error.csv", report.csv_text(rows))
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == backend]
        phase_error.phase_error_plot(own, folder / f"phase_error_{backend}.png")
    write_json(folder / "encodings.json", records(specs, tables))
    shown = sorted({positions[0], *positions[4::4], positions[-1]})
    table = phase_error.table(rows, shown)
    write_json(folder / "numerics.json", {"rows": table, "machine": report.machine()})
    report.print_table(table, "Largest error in cos or sin, over all pairs and 256 positions, below position")
    print(f"\n{folder}/phase_error.csv  {folder}/phase_error_{rows[0]['backend']}.png")
