"""Passkey retrieval: how far, and how deep, an encoding lets a model find a number hidden in text.

    python -m experiments.passkey cpu
    python -m experiments.passkey checkpoint --checkpoints PATH --encodings own yarn resonance-yarn

Stop it at any time: the same command goes on with the next cell. configs/passkey.py has every setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.passkey import PRESETS, Config
from resonance_jax.command import main, open_run, use_every_core
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import data, rope, train
    from resonance_jax.evaluate.passkey import Template
    from resonance_jax.model import Decoder, DecoderConfig
    from resonance_jax.report.passkey import ModelCell

FOUND = ("encoding", "model", "length", "depth", "right", "trials")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A decoder that is asked for keys under an encoding. model: its seed, or the checkpoint's name."""

    label: str
    spec: rope.RopeSpec
    model: int | str
    lm: Decoder


def run(config: Config) -> None:
    """Ask what is missing, then print the table."""
    _check(config)
    folder = open_run("passkey", config)
    if not (folder / "passkey.json").exists():
        _run(config, folder)
    from resonance_jax.report.tables import print_table

    result = read_json(folder / "passkey.json")
    print_table(result["table"], heading(config))
    print(f"{folder}/passkey.png  {folder}/passkey.csv")


def heading(config: Config) -> str:
    """The title of the printed table."""
    many = "; lowest and highest model in parentheses" if len(config.seeds) > 1 else ""
    return f"Keys found (%), template {config.template}, by prompt tokens, all depths{many}"


def _check(config: Config) -> None:
    """Raise ValueError before anything is made."""
    from resonance_jax import data
    from resonance_jax.command.checkpoints import named_checkpoints
    from resonance_jax.evaluate import passkey

    wording = passkey.template(config.template)
    for name in ("encodings", "lengths", "depths"):
        if not getattr(config, name):
            raise ValueError(f"--{name} must be at least one.")
    if config.checkpoints:
        named_checkpoints(config.checkpoints)
    elif not config.seeds:
        raise ValueError("give --checkpoints PATH, or take the preset cpu, which trains small models.")
    elif "own" in config.encodings or config.train_length != config.stages[-1]:
        raise ValueError(
            "models trained here have no encoding of their own, and their L is the last of --stages: give "
            f"--encodings by name and --train-length {config.stages[-1]}."
        )
    elif not len(config.stages) == len(config.stage_steps) == len(config.stage_rows):
        raise ValueError("--stages, --stage-steps and --stage-rows must be as many.")
    else:
        tokenizer = data.tokenizer(config.tokenizer or "bytes")
        for length in (*config.lengths, *config.stages):
            passkey.garbage_characters(wording, length, lambda text: len(data.prompt_ids(tokenizer, text)))


def _run(config: Config, folder: Path) -> None:
    """Make the models, ask them cell by cell, and write down what was found."""
    use_every_core()
    import time

    import jax

    from resonance_jax import data, report, rope
    from resonance_jax.evaluate import passkey
    from resonance_jax.evaluate.journal import Journal

    began = time.monotonic()
    device = jax.devices()[0]
    print(f"device: {jax.local_device_count()} x {device.device_kind}, jax {jax.__version__}")
    own = config.checkpoints[0].rpartition("=")[2] if config.checkpoints else "bytes"
    tokenizer = data.tokenizer(config.tokenizer or own)
    wording = passkey.template(config.template)
    models = loaded(config) if config.checkpoints else trained(config, folder, tokenizer, wording)
    longest = max(config.lengths)
    records = {m.label: rope.to_record(rope.frequencies(m.spec, length=longest), m.spec) for m in models}
    write_json(folder / "encodings.json", records)
    journal = Journal(folder / "cells.jsonl")
    place = lambda cell: (cell["encoding"], cell["model"], cell["length"], cell["depth"])
    known = {place(cell) for cell in journal.records}
    wanted = [(m, length, depth) for m in models for length in config.lengths for depth in config.depths]
    with report.Progress("cells", {"encoding": str}) as progress:
        for done, (m, length, depth) in enumerate(wanted):
            progress(done, len(wanted), encoding=m.label)
            if (m.label, m.model, length, depth) in known:
                continue
            options = {"seed": config.seed, "batch_size": config.batch_size}
            cell = passkey.cell(m.lm, tokenizer, m.spec, wording, length, depth, config.trials, **options)
            journal.append({"encoding": m.label, "model": m.model, **cell})
        progress(len(wanted), len(wanted))
    write_results(folder, config, journal.records, time.monotonic() - began)


def loaded(config: Config) -> list[Asked]:
    """Every checkpoint under each of its encodings."""
    from resonance_jax import interop
    from resonance_jax.command.checkpoints import encodings_of, named_checkpoints, scale_note

    models = []
    named = named_checkpoints(config.checkpoints)
    longest, asked = max(config.lengths), {"scale": config.scale, "train_length": config.train_length}
    for name, path in named.items():
        lm = interop.load_hf(path, dtype=config.dtype)
        specs = encodings_of(lm.rope, config.encodings, name, list(named), longest, **asked)
        for label, spec in specs.items():
            if note := scale_note(spec, lm.rope, config.scale, longest):
                print(f"{label}: {note}")
            models.append(Asked(label, spec, name, lm))
    return models


def trained(config: Config, folder: Path, tokenizer: data.Tokenizer, wording: Template) -> list[Asked]:
    """Models trained here under each encoding, all at L or shorter.

    Per seed one is trained under RoPE and one under Resonance RoPE, as far as the encodings ask for them, and
    from each a short fine-tuning under YaRN follows.
    """
    import jax
    import numpy as np

    from resonance_jax import rope
    from resonance_jax.report.labels import FINETUNED

    L = config.stages[-1]
    scale = max(1.0, max(config.lengths) / L) if config.scale is None else config.scale
    settings = {"head_dim": config.head_dim, "train_length": L, "scale": scale}
    specs = [rope.named(name, **settings) for name in config.encodings]
    print(f"scale of the static methods: s = {scale:g}")
    trainer = _Trainer(config, folder, tokenizer, wording)
    runs = [(seed, r) for seed in config.seeds for r in sorted({spec.resonance for spec in specs})]
    plain = [rope.named("resonance-rope" if r else "rope", **settings) for _, r in runs]
    base = None
    for i, (length, steps, rows) in enumerate(
        zip(config.stages, config.stage_steps, config.stage_rows, strict=True)
    ):
        last = length == L
        base = trainer.fit(
            f"{i}-{length}",
            [seed for seed, _ in runs],
            plain,
            length,
            rows,
            steps,
            questions=1 if last else config.questions,
            lr=config.lr,
            schedule="cosine" if last else "constant",
            params=None if base is None else base.params,
        )
    decoders = {run: base.lm(i) for i, run in enumerate(runs)}
    models = [
        Asked(spec.title, spec, seed, decoders[seed, spec.resonance])
        for spec in specs
        for seed in config.seeds
    ]
    yarn = {spec.resonance: spec for spec in specs if spec.method == "yarn"}
    again = [run for run in runs if run[1] in yarn]
    if again and config.finetune_steps:
        own = np.array([runs.index(run) for run in again])
        tuned = trainer.fit(
            "fine-tune",
            [seed for seed, _ in again],
            [yarn[r] for _, r in again],
            L,
            config.stage_rows[-1],
            config.finetune_steps,
            questions=1,
            lr=config.finetune_lr,
            schedule="cosine",
            params=jax.tree.map(lambda x: x[own], base.params),
        )
        for r, spec in sorted(yarn.items()):
            models += [
                Asked(spec.title + FINETUNED, spec, seed, tuned.lm(i))
                for i, (seed, of) in enumerate(again)
                if of == r
            ]
    return models


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """Trains small models of the config's shape on passkey texts."""

    config: Config
    folder: Path
    tokenizer: data.Tokenizer
    wording: Template

    def fit(
        self,
        name: str,
        seeds: Sequence[int],
        specs: Sequence[rope.RopeSpec],
        length: int,
        rows: int,
        steps: int,
        questions: int,
        lr: float,
        schedule: str,
        params: dict | None,
    ) -> train.ManyRuns:
        """One run per seed and encoding, all at once; a seed's runs see the same texts."""
        import jax
        import numpy as np

        from resonance_jax import report, train
        from resonance_jax.evaluate import passkey

        def batches(step: int) -> dict[str, np.ndarray]:
            by_seed = {
                seed: passkey.training_batch(
                    self.wording, self.tokenizer, length, rows, seed, step, questions
                )
                for seed in self.config.seeds
            }
            return jax.tree.map(lambda *x: np.stack(x), *[by_seed[seed] for seed in seeds])

        optimizer = train.OptimizerConfig(
            lr=lr, beta2=0.98, weight_decay=0.01, schedule=schedule, warmup=0.05, clip=1.0
        )
        with report.training_progress(f"train {name}") as progress:
            return train.fit_many(
                self.shape(),
                seeds,
                specs,
                batches,
                train.TrainConfig(
                    steps,
                    optimizer,
                    micro=max(1, min(rows, 2048 // length)),  # what stays in a core's cache
                ),
                self.folder / f"train-{name}",
                params=params,
                progress=progress,
            )

    def shape(self) -> DecoderConfig:
        """The decoder that is trained."""
        from resonance_jax import model

        config = self.config
        return model.small_llama(
            config.d_model,
            config.n_layers,
            config.head_dim,
            vocab_size=self.tokenizer.vocab_size,
            d_ff=2 * config.d_model,
        )


def write_results(folder: Path, config: Config, cells: Sequence[ModelCell], seconds: float) -> None:
    """passkey.csv, passkey.png, and last passkey.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report import passkey

    rows = passkey.rows(cells)
    write_text(folder / "passkey.csv", report.csv_text(rows))
    models = f", {len(config.seeds)} models each" if config.seeds else ""
    trials = config.trials * max(1, len(config.seeds))
    title = f"Passkey, template {config.template}{models}: keys found of {trials} per cell (%)"
    passkey.heat_map(rows, folder / "passkey.png", title)
    result = {
        "table": passkey.table(cells),
        "template": config.template,
        "columns of found": FOUND,
        "found": [[cell[name] for name in FOUND] for cell in cells],
        "machine": report.machine(),
        "seconds_of_the_last_call": round(seconds, 1),
    }
    write_json(folder / "passkey.json", result)


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
