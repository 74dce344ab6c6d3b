"""Train two small LLaMAs from scratch on real text, extend both by every RoPE method, and draw what happens.

Pretrained weights cannot show what training *with* Resonance does; this can.

    python -m experiments.from_scratch

Stop it at any time: the same command goes on where it was. configs/from_scratch.py has every setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.from_scratch import Config
from resonance_jax.command import (
    device_line,
    keep_result,
    kept_result,
    main,
    open_run,
    options_of,
    remember,
    use_every_core,
    use_precision,
)
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import data, evaluate, rope, train
    from resonance_jax.digest import Identity
    from resonance_jax.model import Decoder
    from resonance_jax.report import trainings

METHODS = ("default", "linear", "ntk", "dynamic_ntk", "yarn")


def run(config: Config) -> int:
    """Train and evaluate what is missing, then print the tables; 3 where a training diverged."""
    use_every_core()
    from resonance_jax import data
    from resonance_jax.report import trainings
    from resonance_jax.report.tables import print_table

    _check(config)
    use_precision(config.precision)
    corpus = data.corpus(config.corpus)
    folder = open_run("from_scratch", config)
    text = corpus.split("train", max_bytes_per_document=64 * 1024), corpus.split("heldout")
    provenance = {name: each.describe() for name, each in zip(("train", "heldout"), text, strict=True)}
    remember(folder / "corpus.json", provenance)
    made_by = identity(config, provenance)
    result = kept_result(folder / "perplexity.json", made_by)
    if result is None:
        _run(config, folder, *text, provenance, made_by)
        result = read_json(folder / "perplexity.json")
    print_table(result["table"], f"Perplexity per byte, trained at {config.train_length}, by length")
    gaps = [trainings.shown(row) for row in result["differences"]]
    print_table(gaps, f"Paired differences at {config.length} (nats per byte)")
    for sentence in result["left_out"]:
        print(sentence)
    print(result["note"])
    print(f"\n{folder}/perplexity.png  {folder}/report.md")
    return 3 if result["left_out"] else 0


def _check(config: Config) -> None:
    """Raise ValueError for settings that cannot be, before anything is made."""
    from resonance_jax import rope
    from resonance_jax.train.config import SEEDS, check_whole

    options = options_of(config)
    for name, value in options.items():
        if name not in ("corpus", "seeds", "data_seed", "lr", "finetune_lr", "precision", "run_dir"):
            check_whole(f"--{name.replace('_', '-')}", value, 1)
    check_whole("--data-seed", config.data_seed, 0)
    for seed in config.seeds:
        check_whole("--seeds", seed, 0, SEEDS)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"--seeds must be at least one, each once; got {' '.join(map(str, config.seeds))}.")
    for name in ("lr", "finetune_lr"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be a positive number, got {options[name]}.")
    if config.train_length < 2 or config.length % config.train_length or config.length == config.train_length:
        raise ValueError(
            f"expected a --length that is a multiple of --train-length, twice or more, and at least 2 "
            f"positions of each; got {config.length:,} and {config.train_length:,}."
        )
    config.shape()
    for resonance in (False, True):
        for spec in specs_of(config, resonance).values():
            rope.frequencies(spec, length=config.length)


def identity(config: Config, provenance: dict[str, dict]) -> Identity:
    """What the result depends on. provenance: of both texts."""
    from resonance_jax.model.lowering import stated_precision

    options = options_of(config)
    return {
        "options": {name: value for name, value in options.items() if name not in ("run_dir", "precision")},
        "text": {name: each["fingerprint"] for name, each in provenance.items()},
        "encodings": [
            spec.to_dict() for resonance in (False, True) for spec in specs_of(config, resonance).values()
        ],
        "precision": "float32",
        **stated_precision(),
    }


def _run(
    config: Config,
    folder: Path,
    training_text: data.Corpus,
    heldout: data.Corpus,
    provenance: dict[str, dict],
    made_by: Identity,
) -> None:
    """Train both models, fine-tune both, evaluate everything, and write down what was found."""
    from resonance_jax import data, evaluate, report, rope

    print(device_line("float32", config.length, config.head_dim))
    tokenizer = data.tokenizer("bytes")
    print(
        f"text: {provenance['train']['bytes'] / 1e6:.1f} MB to train on, "
        f"{provenance['heldout']['documents']} documents held out"
    )
    # A piece and its BOS fill the longest window.
    pieces, owners = evaluate.cut_pieces(
        heldout, tokenizer, config.length - 1, config.pieces_per_document, config.documents
    )
    specs = {resonance: specs_of(config, resonance) for resonance in (False, True)}
    runs = [(seed, resonance) for seed in config.seeds for resonance in (False, True)]
    every = [spec for by_method in specs.values() for spec in by_method.values()]
    records = [rope.to_record(rope.frequencies(spec, length=config.length), spec) for spec in every]
    write_json(folder / "encodings.json", records)
    trainer = _Trainer(config, folder, data.token_file(training_text, tokenizer, folder / "tokens"))
    base = trainer.fit(
        "train",
        [seed for seed, _ in runs],
        [specs[r]["default"] for _, r in runs],
        config.steps,
        config.train_length,
        config.batch_size,
        config.lr,
    )
    tuned = trainer.fit(
        "fine-tune",
        [seed for seed, _ in runs],
        [specs[r]["yarn"] for _, r in runs],
        config.finetune_steps,
        config.length,
        config.finetune_batch_size,
        config.finetune_lr,
        params=base.params,
    )
    by_seed = [
        _subjects(specs, *((base.lm(2 * i + r), tuned.lm(2 * i + r)) for r in (0, 1)))
        for i in range(len(config.seeds))
    ]
    failed = {run // 2 for part in (base, tuned) for run in part.failed}
    names = [f"Seed {seed}, {specs[r]['default'].title}," for seed, r in runs]
    left_out = [sentence for part in (base, tuned) for sentence in part.failures(names)]
    kept = [i for i in range(len(config.seeds)) if i not in failed]
    if not kept:
        raise ValueError(f"no pair of trainings came to its end: {left_out[0]} Lower --lr.")
    lengths = range(config.train_length, config.length + 1, config.train_length)
    with report.Progress("evaluate", {"encoding": str}) as progress:
        labelled = [
            dataclasses.replace(subject, label=f"{subject.label}, seed {config.seeds[i]}")
            for i in kept
            for subject in by_seed[i]
        ]
        results = evaluate.sweep_each(
            labelled, pieces, owners, lengths, tokenizer.bos_id, folder / "nll", progress
        )
    trained = {
        subject.label: [results[f"{subject.label}, seed {config.seeds[i]}"] for i in kept]
        for subject in by_seed[0]
    }
    write_results(folder, config, by_seed[0], trained, left_out, provenance, made_by)


def _subjects(
    specs: dict[bool, dict[str, rope.RopeSpec]],
    plain: tuple[Decoder, Decoder],
    resonant: tuple[Decoder, Decoder],
) -> list[evaluate.Subject]:
    """What is evaluated of one seed: both models under every method, both fine-tuned, and one under a table
    that it never saw. plain, resonant: the model trained without and with Resonance, and it fine-tuned."""
    from resonance_jax.evaluate import Subject
    from resonance_jax.report.labels import FINETUNED, SWAPPED

    models = {False: plain, True: resonant}
    subjects = [
        Subject(specs[r][method].title, specs[r][method], models[r][0])
        for r in (False, True)
        for method in METHODS
    ]
    yarn = {r: specs[r]["yarn"] for r in (False, True)}
    subjects += [Subject(yarn[r].title + FINETUNED, yarn[r], models[r][1]) for r in (False, True)]
    return [*subjects, Subject(yarn[True].title + SWAPPED, yarn[True], models[False][0])]


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """Trains models at once: two of every seed, which differ in their encodings only."""

    config: Config
    folder: Path
    tokens: data.TokenFile

    def fit(
        self,
        name: str,
        seeds: Sequence[int],
        specs: Sequence[rope.RopeSpec],
        steps: int,
        length: int,
        rows: int,
        lr: float,
        params: dict | None = None,
    ) -> train.ManyRuns:
        """One run per seed and encoding, from the seed's first weights (or params) on the same rows."""
        from resonance_jax import data, report, train

        batches = data.Batches(self.tokens, length, rows, self.config.data_seed)
        with report.training_progress(name, bytes_per_token=1.0) as progress:
            return train.fit_many(
                self.config.shape(),
                seeds,
                specs,
                lambda step: {"tokens": batches[step]},
                train.TrainConfig(
                    steps,
                    train.OptimizerConfig(lr=lr, weight_decay=0.1, schedule="cosine", warmup=0.05, clip=1.0),
                    micro=min(rows, max(1, 512 // length)),  # what stays in a core's cache
                ),
                self.folder / name.replace(" ", "-"),
                params=params,
                progress=progress,
            )


def specs_of(config: Config, resonance: bool) -> dict[str, rope.RopeSpec]:
    """The encoding of every method at this config's lengths."""
    from resonance_jax import rope

    plain = rope.RopeSpec(head_dim=config.head_dim, train_length=config.train_length, resonance=resonance)
    prefix = "resonance-" if resonance else ""
    return {method: rope.restate_for_length(plain, prefix + method, config.length) for method in METHODS}


def write_results(
    folder: Path,
    config: Config,
    subjects: Sequence[evaluate.Subject],
    trained: trainings.Trained,
    left_out: list[str],
    provenance: dict[str, dict],
    made_by: Identity,
) -> None:
    """Write perplexity.csv and .png, report.md, and last perplexity.json, which says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report import plots, trainings
    from resonance_jax.report.labels import SWAPPED

    count = len(next(iter(trained.values())))
    plain = [subject.label for subject in subjects if not subject.spec.resonance]
    pairs = [(f"Resonance {label}", label) for label in plain] + [(f"Resonance YaRN{SWAPPED}", "YaRN")]
    specs = {subject.label: subject.spec for subject in subjects}
    rows = [
        {"training": i, **row}
        for label, found in trained.items()
        for i, one in enumerate(found)
        for row in report.figures(label, specs[label], one)
    ]
    write_text(folder / "perplexity.csv", report.csv_text(rows))
    some = "one training" if count == 1 else f"{count} trainings"
    title = (
        f"Trained at {config.train_length} bytes, extended to {config.length} (held-out text), {some} each"
    )
    plots.trainings_plot(trained, folder / "perplexity.png", pairs, config.train_length, title)
    result = {
        "rows": rows,
        "table": trainings.mean_table(trained, report.doubling(config.train_length, config.length)),
        "differences": [trainings.difference_by_seed(trained, a, b, config.length) for a, b in pairs],
        "left_out": left_out,
        "corpus": provenance,
        "note": note(),
        "machine": report.machine(),
    }
    write_text(folder / "report.md", report_text(result, config))
    keep_result(folder / "perplexity.json", made_by, result)


def note() -> str:
    """Why one row is so bad."""
    from resonance_jax.report.labels import SWAPPED

    drift = 32 * (2 * math.pi / 6 - 1)
    return (
        f'Why "{SWAPPED.strip(", ")}" detunes a model: Resonance rounds the fastest wavelength from 6.283 '
        f"positions to 6, so its phase drifts by {drift:.1f} rad over 32 positions from what the weights "
        "were trained with. The paper always trains with what it tests."
    )


def report_text(result: dict, config: Config) -> str:
    """The text of report.md."""
    from resonance_jax import report
    from resonance_jax.report import trainings
    from resonance_jax.report.length_comparison import protocol_sentences

    return "\n".join(
        [
            "# Perplexity past the training length",
            "",
            f"For each of the seeds {', '.join(map(str, config.seeds))}: two models of a shape and the same "
            f"first weights, trained at {config.train_length} bytes (RoPE, Resonance RoPE), each extended to "
            f"{config.length} by every method. Perplexities are geometric means over the trainings. "
            + protocol_sentences(result["rows"][0], result["corpus"]["heldout"], "byte"),
            "",
            "Made by `python -m experiments.from_scratch` on "
            + ", ".join(f"{name} {value}" for name, value in result["machine"].items())
            + ".",
            "",
            report.markdown(result["table"]),
            f"## Resonance minus its base, nats per byte at {config.length}",
            "",
            report.markdown([trainings.shown(row) for row in result["differences"]]),
            *result["left_out"],
            result["note"],
            "",
            "![perplexity](perplexity.png)",
            "",
        ]
    )


if __name__ == "__main__":
    main(run, Config, __doc__)
