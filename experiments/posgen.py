"""PosGen: the paper's Table 1 and Figure 3, all encodings and seeds of a task in one compiled program.

    python -m experiments.posgen smoke|cpu|table1 [--protocol corrected|release|paper] [--encodings …]

Stop it at any time: the same command goes on where it was. configs/posgen.py has every preset and setting.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from configs.posgen import PRESETS, Config
from resonance_jax.command import keep_result, kept_result, main, open_run, options_of, use_every_core
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import numpy as np

    from resonance_jax import train
    from resonance_jax.digest import Identity
    from resonance_jax.evaluate.posgen_accuracy import SetScores
    from resonance_jax.model import DecoderConfig
    from resonance_jax.model.decoder import Params

    Evaluate = Callable[[Params], dict[str, SetScores]]
    """Scores the parameters of all runs on every set."""

ELSEWHERE = ("tasks", "micro", "save_seconds", "plan", "run_dir")
"""Options that say where and how something is computed, or what else is."""
MLP = ("layers/mlp_norm", "layers/up", "layers/down")
"""The parameters that the published code leaves as they were drawn."""


def run(config: Config) -> None:
    """Train and evaluate what is missing, then print the tables; or only plan it."""
    use_every_core()
    if config.plan:
        plan(config)
        return
    study = Study(config)
    folder = open_run("posgen", config)
    write_json(folder / "encodings.json", study.records())
    kept = {task: kept_result(folder / task / "result.json", study.identity(task)) for task in config.tasks}
    if None in kept.values():
        print(study.about())
    results = {task: found or study.result(task, folder / task) for task, found in kept.items()}
    write_results(folder, config, results)
    show(folder)


class Study:
    """What all tasks of a config share: the decoder, the tables, which trainings there are.

    Raises ValueError for settings that do not fit together.
    """

    def __init__(self, config: Config):
        import jax

        from resonance_jax import train
        from resonance_jax.data import posgen
        from resonance_jax.evaluate import posgen_encodings
        from resonance_jax.train.batches import check_rows
        from resonance_jax.train.config import SEEDS, check_whole

        for name in ("tasks", "encodings", "seeds"):
            values = getattr(config, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"--{name} must be at least one, each once; got {' '.join(map(str, values))}."
                )
        for name in ("epochs", "eval_epochs", "batch_size", "train_rows", "val_rows", "test_rows"):
            check_whole(f"--{name.replace('_', '-')}", getattr(config, name), 1)
        for seed in config.seeds:
            check_whole("--seeds", seed, 0, SEEDS)
        if not 0 < config.lr < math.inf:
            raise ValueError(f"--lr must be a positive number, got {config.lr}.")
        if not config.far + config.near < config.train_length < config.length:
            raise ValueError(
                f"expected far + near < train_length < length, got {config.far} + {config.near}, "
                f"{config.train_length}, {config.length}."
            )
        self.sizes = (config.train_rows, config.val_rows, config.test_rows)
        posgen.seeds(config.protocol, "val", self.sizes, config.modulus, config.far, config.near)
        posgen.ceiling(config.tasks[0], modulus=config.modulus, hash=config.hash)
        self.config = config
        self.shape = decoder_shape(config)
        self.encodings = [
            posgen_encodings.encoding(
                name,
                config.protocol,
                config.train_length,
                config.length,
                config.head_dim,
                beta_fast=config.beta_fast,
                beta_slow=config.beta_slow,
                long_factor=config.long_factor,
            )
            for name in config.encodings
        ]
        if len({encoding.title for encoding in self.encodings}) < len(self.encodings):
            raise ValueError(f"an encoding is named twice in {' '.join(config.encodings)}.")
        groups = posgen_encodings.training_groups(self.encodings)
        self.runs = [(seed, group) for seed in config.seeds for group in groups]
        self.device = jax.devices()[0]
        self.precision = config.precision
        if self.precision == "auto":
            self.precision = "tensorfloat32" if self.device.platform == "gpu" else "float32"
        jax.config.update("jax_default_matmul_precision", self.precision)
        self.rows = train.Rows(config.train_rows, config.batch_size, [seed for seed, _ in self.runs])
        self.training = train.TrainConfig(
            config.epochs * self.rows.steps_per_epoch,
            train.OptimizerConfig(
                lr=config.lr,
                beta2=0.999,
                weight_decay=config.weight_decay,
                schedule=config.schedule,
                warmup=0.1,
                freeze=MLP if config.protocol == "release" else (),
            ),
            micro=config.micro,
            save_seconds=config.save_seconds,
        )
        check_rows(config.batch_size, config.micro, None)

    def records(self) -> list[dict[str, object]]:
        """Every encoding as JSON: its spec, the table trained with and the table evaluated under."""
        from resonance_jax import rope

        return [
            {
                "encoding": e.title,
                "trained": rope.to_record(e.train),
                "evaluated": rope.to_record(e.evaluation, e.spec),
            }
            for e in self.encodings
        ]

    def identity(self, task: str) -> Identity:
        """What a task's numbers depend on. The device is not part of it: tasks may come from several."""
        options = options_of(self.config)
        return {
            "task": task,
            "options": {name: value for name, value in options.items() if name not in ELSEWHERE},
            "encodings": [
                {table: record[table]["fingerprint"] for table in ("trained", "evaluated")}
                for record in self.records()
            ],
        }

    def about(self) -> str:
        """The device, and how much is trained."""
        import jax

        config, steps = self.config, self.training.steps
        return (
            f"device: {jax.local_device_count()} x {self.device.platform} ({self.device.device_kind}), "
            f"{self.precision}, jax {jax.__version__}\n"
            f"{config.protocol}: {len(self.encodings)} encodings x {len(config.seeds)} seeds by "
            f"{len(self.runs)} trainings of {steps:,} steps at once, {len(config.tasks)} tasks"
        )

    def data(self, task: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(examples to train on, token rows by evaluation set)."""
        import numpy as np

        from resonance_jax.data import posgen

        c = self.config
        split = lambda name: posgen.split(
            c.protocol,
            task,
            name,
            c.train_length,
            c.length,
            self.sizes,
            c.modulus,
            c.far,
            c.near,
            c.hash,
        )
        examples = split("train")
        # The last token is predicted and never read: 64 positions, not 65.
        return (
            {"tokens": np.asarray(examples.tokens)[:, :-1], "targets": np.asarray(examples.labels)},
            {name: np.asarray(split(name).tokens) for name in ("val", "test")},
        )

    def fit(
        self,
        task: str,
        folder: Path,
        training: train.TrainConfig,
        timed: Callable[[Evaluate], Evaluate],
        progress: Callable[..., None],
    ) -> train.ManyRuns:
        """All runs of a task, trained at once. timed: wraps the evaluation to take its time."""
        from resonance_jax import train
        from resonance_jax.evaluate import posgen_accuracy

        c = self.config
        examples, sets = self.data(task)
        tables = [[self.encodings[i].evaluation for i in group] for _, group in self.runs]
        score = timed(posgen_accuracy.evaluator(self.shape, sets, tables, c.far + c.near))
        return train.fit_many(
            self.shape,
            [seed for seed, _ in self.runs],
            [self.encodings[group[0]].train for _, group in self.runs],
            self.rows.__getitem__,
            training,
            folder,
            examples=examples,
            evaluators=[
                train.Evaluator(c.eval_epochs * self.rows.steps_per_epoch, lambda state: score(state.params))
            ],
            progress=progress,
        )

    def result(self, task: str, folder: Path) -> dict:
        """The task's numbers, by training (on); result.json keeps them."""
        from resonance_jax import report
        from resonance_jax.data import posgen as data
        from resonance_jax.evaluate import posgen_accuracy
        from resonance_jax.report.step_clock import StepClock

        c, order = self.config, self.config.far + self.config.near
        clock = StepClock(len(self.runs))
        number = c.tasks.index(task)
        formats = {
            "loss": lambda v: f"loss {v:.3f}",
            "tokens_per_second": lambda v: f"{clock.rate():,.1f} run-steps/s",
        }
        label = f"{task} ({number + 1} of {len(c.tasks)})"
        with report.Progress(label, formats, first="compiling") as bar:
            steps = self.training.steps
            progress = lambda done, total, **figures: (
                clock.tick(done) or bar(done + number * steps, len(c.tasks) * steps, **figures)
            )
            trained = self.fit(task, folder, self.training, clock.timed, progress)
        evaluations = [r for r in trained.history if "evaluation" in r]
        curves: dict[str, list] = {encoding.title: [] for encoding in self.encodings}
        for e, (_, group) in enumerate(self.runs):
            for j, i in enumerate(group):
                scores = [record["evaluation"] for record in evaluations]
                curves[self.encodings[i].title].append(
                    posgen_accuracy.curve(scores, e, j, order, c.train_length)
                )
        ceiling = data.ceiling(task, c.train_length, c.length, c.modulus, c.far, c.near, c.hash)
        result = {
            "task": task,
            "seeds": list(c.seeds),
            "epochs": [record["step"] / self.rows.steps_per_epoch for record in evaluations],
            "trainings": len(self.runs),
            "steps": self.training.steps,
            "ceiling": ceiling._asdict(),
            "curves": curves,
            "device": f"{self.device.platform} ({self.device.device_kind})",
            "precision": self.precision,
            **clock.figures(),
        }
        keep_result(folder / "result.json", self.identity(task), result)
        return result


def decoder_shape(config: Config) -> DecoderConfig:
    """The decoder of a study."""
    from resonance_jax import data, model

    common = {
        "vocab_size": data.posgen.vocab_size(config.modulus),
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_heads,
        "head_dim": config.head_dim,
        "d_ff": config.d_ff,
        "dropout": config.dropout,
    }
    if config.model == "llama":
        return model.DecoderConfig(**common, norm_eps=1e-6, mlp="relu")
    return model.PRESETS["t5-small-decoder"].replace(**common, head_scale=config.d_model**-0.5)


def plan(config: Config) -> None:
    """Ten steps and an evaluation of the first task, timed; how long the whole would take."""
    study = Study(config)
    print(study.about())
    calls: list[float] = []
    evaluations: list[float] = []

    def timed(evaluate: Evaluate) -> Evaluate:
        def evaluation(params: Params) -> dict[str, SetScores]:
            for _ in range(2):  # the first one compiles
                began = time.monotonic()
                record = evaluate(params)
            evaluations.append(time.monotonic() - began)
            return record

        return evaluation

    training = dataclasses.replace(study.training, steps=12, steps_per_call=2, save_seconds=float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        tick = lambda *_, **__: calls.append(time.monotonic())
        study.fit(config.tasks[0], Path(folder), training, timed, tick)
    # The last call is followed by the evaluation.
    step = statistics.median(b - a for a, b in itertools.pairwise(calls[:-1])) / 2
    times = -(-config.epochs // config.eval_epochs)
    minutes = (step * study.training.steps + evaluations[0] * times) / 60
    runs, tasks = len(study.runs), len(config.tasks)
    print(
        f"a step of {runs} runs takes {1000 * step:.1f} ms ({runs / step:,.1f} run-steps/s), "
        f"an evaluation {evaluations[0]:.1f} s.\n"
        f"A task is {study.training.steps:,} steps and {times} evaluations, {minutes:.1f} minutes; "
        f"{tasks} tasks take {tasks * minutes:.0f} minutes, about {tasks * minutes / len(config.seeds):.0f} "
        "for each of the --seeds."
    )


def write_results(folder: Path, config: Config, results: dict[str, dict]) -> None:
    """table1.md, .csv, .json and both pictures. results: by task."""
    import numpy as np

    from resonance_jax import report
    from resonance_jax.report import plots, posgen

    table = posgen.rows(results)
    pairs = [(a, a.removeprefix("Resonance ")) for a in next(iter(results.values()))["curves"]]
    gaps = posgen.differences(results, [(a, b) for a, b in pairs if a != b])
    about = heading(config, results)
    write_text(folder / "table1.csv", report.csv_text(table))
    write_text(folder / "table1.md", posgen.report(table, gaps, about))
    lines = lambda pick: {
        task: {title: np.asarray([pick(c) for c in curves]) for title, curves in result["curves"].items()}
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
    timing = ("trainings", "steps", "device", "precision", "wall_seconds", "run_steps_per_second")
    figures = {task: {name: result[name] for name in timing} for task, result in results.items()}
    write_json(folder / "table1.json", {"rows": table, "differences": gaps, "tasks": figures})


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


if __name__ == "__main__":
    main(run, PRESETS, __doc__, preset_by_default=False)
