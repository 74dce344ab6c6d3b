"""A comparison trained once a seed: differences paired by seed, the only ones that get a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from configs.finetune import Config
from experiments.finetune.inputs import identity
from resonance_jax.command import open_run, with_options
from resonance_jax.files import FilePath, read_json, write_json, write_text

if TYPE_CHECKING:
    from resonance_jax.report.perplexity import FigureRow
    from resonance_jax.report.trainings import Trained


def run_seeds(config: Config, run: Callable[[Config], int]) -> int:
    """Run the comparison of each seed in a folder of its own, then write and print what they say together.

    A seed decides the order of the rows and, where the base is trained here, that too. A pretrained base is
    the same for all, so that the interval is over orders of the rows alone.

    Args:
        config: with seeds.
        run: the command itself, for one seed.

    Returns the worst exit code of the seeds. Raises ValueError for seeds that cannot be.
    """
    from resonance_jax.report.tables import print_table

    _check(config)
    folder = open_run("finetune", identity(config))
    codes, sweeps = [], []
    for seed in config.comparison.seeds:
        print(f"seed {seed} ({config.comparison.seeds.index(seed) + 1} of {len(config.comparison.seeds)})")
        codes.append(run(_of_seed(config, seed, folder)))
        sweeps.append(read_json(_part(folder, seed) / "finetune.json"))
    result = write_trainings(folder, config, sweeps)
    print_table(result["table"], f"Perplexity of held-out text by length, {len(sweeps)} trainings")
    print_table(result["shown"], f"Differences at {config.length:,} paired by seed, nats per token")
    print(f"{folder}/seeds.png  {folder}/seeds.md  {folder}/seeds.json")
    return max(codes)


def _check(config: Config) -> None:
    """Raise ValueError for seeds that cannot be, before anything is made."""
    from resonance_jax.train.config import SEEDS, check_whole

    if not config.comparison.compare:
        raise ValueError("--seeds repeats a comparison; give --compare, or one --seed.")
    for seed in config.comparison.seeds:
        check_whole("--seeds", seed, 0, SEEDS)
    if len(set(config.comparison.seeds)) < len(config.comparison.seeds):
        raise ValueError(f"--seeds must be each once; got {' '.join(map(str, config.comparison.seeds))}.")


def _part(folder: FilePath, seed: int) -> FilePath:
    return folder / f"seed-{seed}"


def _of_seed(config: Config, seed: int, folder: FilePath) -> Config:
    """The same comparison under one seed. The text is tokenized once for all."""
    cache = config.text.cache_dir or str(folder / "tokens")
    checkpoints = (
        None if config.keeping.checkpoint_dir is None else f"{config.keeping.checkpoint_dir}/seed-{seed}"
    )
    return with_options(
        config,
        seed=seed,
        seeds=(),
        cache_dir=cache,
        checkpoint_dir=checkpoints,
        run_dir=str(_part(folder, seed)),
    )


def write_trainings(folder: FilePath, config: Config, sweeps: list[Mapping]) -> dict:
    """Write seeds.png, seeds.md and last seeds.json; returns the content of the latter.

    Args:
        folder: of all seeds.
        config: of all seeds.
        sweeps: the content of each seed's finetune.json.
    """
    from resonance_jax import report
    from resonance_jax.report import plots, trainings
    from resonance_jax.report.labels import FINETUNED

    trained = _by_label([sweep["rows"] for sweep in sweeps])
    pairs = [(row["encoding"], row["minus"]) for row in sweeps[0]["differences"]]
    twins = [pair for pair in pairs if all(FINETUNED in label for label in pair)]
    gaps = [trainings.difference_by_seed(trained, a, b, config.length) for a, b in pairs]
    lengths = sorted(next(iter(trained.values()))[0])
    result = {
        "seeds": list(config.comparison.seeds),
        "table": trainings.mean_table(trained, report.doubling(lengths[0], lengths[-1])),
        "differences": gaps,
        "shown": [trainings.shown(row) for row in gaps],
        "corpus": sweeps[0]["corpus"],
        "machine": report.machine(),
    }
    title = f"Fine-tuned for {config.steps} steps at {config.length} (held-out text), {len(sweeps)} trainings"
    plots.trainings_plot(trained, folder / "seeds.png", twins, lengths[0], title, unit="token")
    write_text(folder / "seeds.md", _report(result, config))
    write_json(folder / "seeds.json", result)
    return result


def _by_label(rows_by_seed: list[list[FigureRow]]) -> Trained:
    """The rows of each seed's sweep by label, seed and length."""
    from resonance_jax.report.trainings import MeanNll

    trained: dict[str, list[dict[int, MeanNll]]] = {}
    for rows in rows_by_seed:
        of_seed: dict[str, dict[int, MeanNll]] = {}
        for row in rows:
            found = MeanNll(math.log(row["perplexity"]))
            of_seed.setdefault(row["encoding"], {})[row["length"]] = found
        for label, by_length in of_seed.items():
            trained.setdefault(label, []).append(by_length)
    return trained


def _report(result: Mapping, config: Config) -> str:
    """The text of seeds.md."""
    from resonance_jax import report

    seeds = ", ".join(map(str, config.comparison.seeds))
    return "\n".join(
        [
            f"Fine-tuned under {config.method}, without and with Resonance, for each of the seeds {seeds}. "
            "Perplexities per token of held-out text are geometric means over the trainings.",
            "",
            report.markdown(result["table"]),
            f"Differences at {config.length:,}, paired by seed, nats per token:",
            "",
            report.markdown(result["shown"]),
            "![perplexity](seeds.png)",
            "",
        ]
    )
