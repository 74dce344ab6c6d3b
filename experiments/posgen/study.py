"""What is trained and evaluated for one task of PosGen: every encoding and seed in one compiled program."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from configs.posgen import Config
from resonance_jax.command import device_line, keep_result, options_of, use_precision

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
        use_precision(self.precision)
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

    def wavelengths(self) -> list[int]:
        """The whole wavelengths of what is trained with Resonance that turn within the training length."""
        from resonance_jax import rope

        resonant = [e.train for e in self.encodings if e.spec.resonance]
        found = {
            int(w) for table in resonant for w in rope.wavelengths(table) if w <= self.config.train_length
        }
        return sorted(found)

    def identity(self, task: str) -> Identity:
        """What a task's numbers depend on. The device is left out: tasks may be computed on several. The
        precision is stated unless it is float32."""
        options, exact = options_of(self.config), self.precision == "float32"
        return {
            "task": task,
            "options": {name: value for name, value in options.items() if name not in ELSEWHERE},
            "encodings": [
                {table: record[table]["fingerprint"] for table in ("trained", "evaluated")}
                for record in self.records()
            ],
            **({} if exact else {"precision of products": self.precision}),
        }

    def about(self) -> str:
        """The device, and how much is trained."""
        config, steps = self.config, self.training.steps
        return (
            f"{device_line('float32', config.train_length, config.head_dim)}\n"
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
        """Train what is missing of a task, and keep its numbers in result.json."""
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
        scores = [record["evaluation"] for record in evaluations]
        curves: dict[str, list] = {encoding.title: [] for encoding in self.encodings}
        for e, (_, group) in enumerate(self.runs):
            for j, i in enumerate(group):
                curve = posgen_accuracy.curve(scores, e, j, order, c.train_length)
                curves[self.encodings[i].title].append(None if e in trained.failed else curve)
        names = [f"{task}: {self.encodings[group[0]].title}, seed {seed}," for seed, group in self.runs]
        ceiling = data.ceiling(task, c.train_length, c.length, c.modulus, c.far, c.near, c.hash)
        result = {
            "task": task,
            "seeds": list(c.seeds),
            "epochs": [record["step"] / self.rows.steps_per_epoch for record in evaluations],
            "trainings": len(self.runs),
            "steps": self.training.steps,
            "ceiling": ceiling._asdict(),
            "curves": curves,
            "left_out": trained.failures(names),
            "device": f"{self.device.platform} ({self.device.device_kind})",
            "precision": self.precision,
            **clock.figures(),
        }
        keep_result(folder / "result.json", self.identity(task), result)
        return result


def decoder_shape(config: Config) -> DecoderConfig:
    """The decoder that a config describes."""
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
