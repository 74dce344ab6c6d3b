"""Table 1, Figure 3 and accuracy by position, written down and printed."""

from __future__ import annotations

from pathlib import Path

from configs.posgen import Config
from resonance_jax.files import read_json, write_json, write_text


def write_results(folder: Path, config: Config, results: dict[str, dict], wavelengths: list[int]) -> None:
    """table1.md, .csv, .json and the pictures; residues.csv where a resonant table was trained.

    Args:
        folder: of the run.
        config: of the run.
        results: by task.
        wavelengths: the pre-critical ones of the resonant table, in positions.
    """
    import numpy as np

    from resonance_jax import report
    from resonance_jax.report import plots, posgen
    from resonance_jax.report.posgen_residues import write_residues

    table = posgen.rows(results)
    pairs = [(a, a.removeprefix("Resonance ")) for a in next(iter(results.values()))["curves"]]
    gaps = posgen.differences(results, [(a, b) for a, b in pairs if a != b])
    about = heading(config, results)
    write_text(folder / "table1.csv", report.csv_text(table))
    lines = lambda pick: {
        task: {
            title: np.asarray([pick(c) for c in curves if c is not None])
            for title, curves in result["curves"].items()
            if any(c is not None for c in curves)
        }
        for task, result in results.items()
    }
    title = f"PosGen, protocol {config.protocol}, {len(config.seeds)} seeds"
    plots.accuracy_by_position_plot(
        lines(lambda c: c["by_position"]["best"]),
        folder / "accuracy_by_position.png",
        config.far + config.near,
        config.train_length,
        {task: (r["ceiling"]["id"], r["ceiling"]["ood"]) for task, r in results.items()},
        title + ": accuracy at each token",
    )
    epochs = np.asarray(next(iter(results.values()))["epochs"])
    plots.validation_loss_plot(
        lines(lambda c: c["val_loss"]), folder / "validation_loss.png", epochs, title + ": validation loss"
    )
    first = config.far + config.near
    between = write_residues(folder, results, wavelengths, first, config.train_length, title)
    write_text(folder / "table1.md", posgen.report(table, gaps, about, between))
    timing = ("trainings", "steps", "device", "precision", "wall_seconds", "run_steps_per_second")
    figures = {task: {name: result[name] for name in timing} for task, result in results.items()}
    found = {"rows": table, "differences": gaps, "by residue": between, "tasks": figures}
    write_json(folder / "table1.json", found)


def heading(c: Config, results: dict[str, dict]) -> str:
    """What was trained and measured, for table1.md."""
    first = next(iter(results.values()))
    minutes = sum(result["wall_seconds"] for result in results.values()) / 60
    steps = sum(result["trainings"] * result["steps"] for result in results.values())
    return "\n".join(
        [
            f"# PosGen, protocol `{c.protocol}`",
            "",
            f"{c.model}-like decoder, width {c.d_model}, {c.n_layers} layers, {c.n_heads} heads of "
            f"{c.head_dim}, dropout {c.dropout:g}; {c.epochs} epochs of {c.train_rows:,} sequences of "
            f"{c.train_length} tokens, batch {c.batch_size}, peak learning rate {c.lr:g} ({c.schedule}); "
            f"hash `{c.hash}`; evaluated on {c.test_rows:,} sequences of {c.length}. Seeds "
            f"{', '.join(map(str, c.seeds))}: mean ± standard deviation over them. The paper's figures are "
            "of T5-small's size and its own protocol.",
            "",
            f"{first['device']}, {first['precision']}: {steps:,} run-steps in {minutes:.1f} minutes, "
            f"{first['run_steps_per_second']:,.1f} run-steps/s while training.",
        ]
    )


def show(folder: Path) -> None:
    """Print the table under both rules."""
    from resonance_jax.report import posgen, print_table

    table = read_json(folder / "table1.json")["rows"]
    for rule, meaning in posgen.RULES.items():
        print_table(posgen.wide(table, rule), f"OOD accuracy (%), {meaning}")
    print(f"{folder}/table1.md  {folder}/accuracy_by_position.png  {folder}/validation_loss.png")
