"""The paper's LLaMA-2 experiments, end to end: four fine-tunings of a size, Figure 4, Table 2.

    python -m experiments.paper --model 7b --plan --chip v5p --devices 8
    python -m experiments.paper --model 7b --chip v5p --devices 8 --checkpoint PATH …

Each stage is a command of this package, which is printed before it runs. Stop it at any time: the same
command goes on within the stage where it was. configs/paper.py has every setting.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from configs.paper import ELSEWHERE, Config
from experiments.paper.planned import show_plan
from experiments.paper.stages import Stage, on_chips, searched, stages
from resonance_jax.command import default_folder, open_run, run_command
from resonance_jax.command.bounds import check_some
from resonance_jax.command.child_command import STOPPED
from resonance_jax.files import is_remote, read_json, write_text

GOES_ON = (0, 3)
"""Exit codes after which the next stage begins: done, and done with items left out."""


def run(config: Config) -> int:
    """Run the stages in order, or only plan them. 3: a stage left something out. A stage that fails ends the
    run with its own exit code."""
    import jax

    # The chips belong to the stages: this process must not open them.
    jax.config.update("jax_platforms", "cpu")
    _check(config)
    own = identity(config)
    folder = Path(config.run_dir or default_folder("paper", own))
    planned = stages(config, folder)
    if config.plan:
        return show_plan(config, planned)
    _check_inputs(config)
    todo = [stage for stage in planned if stage.part in config.parts]
    if config.chip is not None and config.devices is not None:
        fitted = lambda stage: on_chips(stage, searched(stage, config.chip, config.devices))
        todo = [fitted(stage) if stage.part == "finetune" else stage for stage in todo]
    open_run("paper", own)
    left_out = False
    for number, stage in enumerate(todo, 1):
        print(f"\n[{number} of {len(todo)}] {shlex.join(stage.words)}", flush=True)
        code = run_command(stage.words)
        if code not in GOES_ON:
            print(f"{stage.part}, {stage.preset}, ended with {code}; the same command goes on from there.")
            return code if code > 0 else STOPPED  # below 0: the system killed it
        left_out = left_out or code == 3
    show(config, planned, folder)
    return 3 if left_out else 0


def identity(config: Config) -> Config:
    """The config without what may change between the parts of one run."""
    defaults = {f.name: f.default for f in dataclasses.fields(Config) if f.name in ELSEWHERE}
    return dataclasses.replace(config, **defaults)


def _check(config: Config) -> None:
    """Raise ValueError for settings that cannot be."""
    check_some(config, "parts", "corpora")
    if config.devices is not None and config.devices < 1:
        raise ValueError(f"--devices must be at least 1, got {config.devices}.")
    if (config.chip is None) != (config.devices is None):
        raise ValueError("--chip and --devices go together: give both, or neither.")
    if config.run_dir is not None and is_remote(config.run_dir):
        raise ValueError(f"--run-dir must be on a disk that the stages share, got {config.run_dir}.")


def _check_inputs(config: Config) -> None:
    """Raise ValueError for a path that some stage would miss, days later."""
    for name, value, parts in (
        ("checkpoint", config.checkpoint, ("finetune", "figure4", "table2")),
        ("corpus", config.corpus, ("finetune",)),
        ("leval", config.leval, ("table2",)),
    ):
        if set(parts) & set(config.parts) and not value:
            raise ValueError(f"--{name} must be given for {' and '.join(parts)}.")
    if "table2" in config.parts and not Path(config.leval).is_dir():
        raise ValueError(f"--leval must be a directory, got {config.leval!r}.")
    if not Path(config.checkpoint).is_dir():
        raise ValueError(f"--checkpoint must be a Hugging Face directory, got {config.checkpoint!r}.")


def show(config: Config, planned: list[Stage], folder: Path) -> None:
    """Print the rows of Table 2 that are there, in one table, kept as table2.csv, and where the figure is."""
    from resonance_jax import report

    rows = []
    for stage in planned:
        path = stage.folder / "leval.json"
        if stage.part == "table2" and path.exists():
            rows += read_json(path)["table"][:4]
    if rows:
        report.print_table(rows, f"Table 2, LLaMA-2 {config.model} (%)")
        write_text(folder / "table2.csv", report.csv_text(rows))
        print(f"{folder}/table2.csv")
    if (picture := folder / "figure4" / "perplexity.png").exists():
        print(picture)
