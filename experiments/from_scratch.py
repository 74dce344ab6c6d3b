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
    keep_result,
    kept_result,
    main,
    open_run,
    options_of,
    remember,
    use_every_core,
)
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import data, evaluate, rope, train
    from resonance_jax.digest import Identity

METHODS = ("default", "linear", "ntk", "dynamic_ntk", "yarn")


def run(config: Config) -> None:
    """Train and evaluate what is missing, then print the tables."""
    use_every_core()
    from resonance_jax import data
    from resonance_jax.report.tables import print_table

    _check(config)
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
    print_table(table(result, config), f"Perplexity per byte, trained at {config.train_length}, by length")
    print_table(result["differences"], f"Paired differences at {config.length} (nats per byte)")
    print(result["note"])
    print(f"\n{folder}/perplexity.png  {folder}/report.md")


def _check(config: Config) -> None:
    """Raise ValueError for settings that cannot be, before anything is made."""
    from resonance_jax import rope
    from resonance_jax.train.config import SEEDS, check_whole

    options = options_of(config)
    for name, value in options.items():
        if name not in ("corpus", "seed", "lr", "finetune_lr", "run_dir"):
            check_whole(f"--{name.replace('_', '-')}", value, 1)
    check_whole("--seed", config.seed, 0, SEEDS)
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
    return {
        "options": {name: value for name, value in options_of(config).items() if name != "run_dir"},
        "text": {name: each["fingerprint"] for name, each in provenance.items()},
        "encodings": [
            spec.to_dict() for resonance in (False, True) for spec in specs_of(config, resonance).values()
        ],
        "precision": "float32",
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
    import jax

    from resonance_jax import data, evaluate, report, rope

    device = jax.devices()[0]
    print(
        f"device: {jax.local_device_count()} x {device.platform} ({device.device_kind}), "
        f"float32, jax {jax.__version__}"
    )
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
    every = [spec for by_method in specs.values() for spec in by_method.values()]
    records = [rope.to_record(rope.frequencies(spec, length=config.length), spec) for spec in every]
    write_json(folder / "encodings.json", records)
    trainer = _Trainer(config, folder, data.token_file(training_text, tokenizer, folder / "tokens"))
    base = trainer.fit(
        "train",
        [specs[r]["default"] for r in (False, True)],
        config.steps,
        config.train_length,
        config.batch_size,
        config.lr,
    )
    tuned = trainer.fit(
        "fine-tune",
        [specs[r]["yarn"] for r in (False, True)],
        config.finetune_steps,
        config.length,
        config.finetune_batch_size,
        config.finetune_lr,
        params=base.params,
    )
    subjects = _subjects(specs, base, tuned)
    lengths = range(config.train_length, config.length + 1, config.train_length)
    with report.Progress("evaluate", {"encoding": str}) as progress:
        results = evaluate.sweep_each(
            subjects, pieces, owners, lengths, tokenizer.bos_id, folder / "nll", progress
        )
    write_results(folder, config, subjects, results, provenance, made_by)


def _subjects(
    specs: dict[bool, dict[str, rope.RopeSpec]], base: train.ManyRuns, tuned: train.ManyRuns
) -> list[evaluate.Subject]:
    """What is evaluated: both models under every method, fine-tuned, and one under a table it never saw."""
    from resonance_jax.evaluate import Subject
    from resonance_jax.report.labels import FINETUNED, SWAPPED

    models = {r: (base.lm(int(r)), tuned.lm(int(r))) for r in (False, True)}
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
    """Trains two models at once, which differ in their encodings only."""

    config: Config
    folder: Path
    tokens: data.TokenFile

    def fit(
        self,
        name: str,
        specs: Sequence[rope.RopeSpec],
        steps: int,
        length: int,
        rows: int,
        lr: float,
        params: dict | None = None,
    ) -> train.ManyRuns:
        """One run per encoding, from the same first weights (or params) on the same rows."""
        from resonance_jax import data, report, train

        batches = data.Batches(self.tokens, length, rows, self.config.seed)
        with report.training_progress(name, bytes_per_token=1.0) as progress:
            return train.fit_many(
                self.config.shape(),
                [self.config.seed] * len(specs),
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
    results: dict[str, dict[int, evaluate.Perplexity]],
    provenance: dict[str, dict],
    made_by: Identity,
) -> None:
    """perplexity.csv, .png, report.md, and last perplexity.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report.labels import SWAPPED
    from resonance_jax.report.length_comparison import differences, write_sweeps

    plain = [subject.label for subject in subjects if not subject.spec.resonance]
    pairs = [(f"Resonance {label}", label) for label in plain] + [(f"Resonance YaRN{SWAPPED}", "YaRN")]
    title = f"Trained at {config.train_length} bytes, extended to {config.length} (held-out text)"
    result = {
        "rows": write_sweeps(folder, "perplexity", subjects, results, title, unit="byte"),
        "differences": differences(results, pairs, config.length),
        "corpus": provenance,
        "note": note(),
        "machine": report.machine(),
    }
    write_text(folder / "report.md", report_text(result, config))
    keep_result(folder / "perplexity.json", made_by, result)


def table(result: dict, config: Config) -> list[dict[str, str | float]]:
    """The lengths that fit on a page."""
    from resonance_jax import report

    return report.table(result["rows"], report.doubling(config.train_length, config.length))


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
    from resonance_jax.report.length_comparison import protocol_sentences

    return "\n".join(
        [
            "# Perplexity past the training length",
            "",
            f"Two models of one shape and the same first weights, trained at {config.train_length} bytes "
            f"(RoPE, Resonance RoPE), each extended to {config.length} by every method. "
            + protocol_sentences(result["rows"][0], result["corpus"]["heldout"], "byte"),
            "",
            "Made by `python -m experiments.from_scratch` on "
            + ", ".join(f"{name} {value}" for name, value in result["machine"].items())
            + ".",
            "",
            report.markdown(table(result, config)),
            f"## Resonance minus its base, nats per byte at {config.length}",
            "",
            report.markdown(result["differences"]),
            result["note"],
            "",
            "![perplexity](perplexity.png)",
            "",
        ]
    )


if __name__ == "__main__":
    main(run, Config, __doc__)
