"""Perplexity against context length: checkpoints x encodings x corpora x lengths, in one resumable run.

    python -m experiments.perplexity sweep --checkpoints base=PATH --corpora stdlib --encodings own yarn
    python -m experiments.perplexity figure4-llama2-7b --help

Stop it at any time: the same command goes on with the next document.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from configs.perplexity import PRESETS, Config
from resonance_jax.command import main, open_run
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import data, evaluate, rope
    from resonance_jax.evaluate.documents import Ids

    Results = dict[str, dict[str, dict[int, evaluate.Perplexity]]]
    """By corpus, then by label, then by length."""


def run(config: Config) -> None:
    """Score what is missing, then print the tables."""
    from resonance_jax.command.checkpoints import named_checkpoints
    from resonance_jax.report.perplexity import table
    from resonance_jax.report.tables import print_table

    named = named_checkpoints(config.checkpoints)
    folder = open_run("perplexity", config)
    if not (folder / "perplexity.json").exists():
        _run(config, folder, named)
    result = read_json(folder / "perplexity.json")
    lengths = result["table_lengths"]
    for corpus, part in result["corpora"].items():
        print_table(table(part["rows"], lengths), f"{corpus}: perplexity over tokens, {config.protocol}")
        if part["differences"]:
            print_table(part["differences"], "Paired differences, nats per token")
    print(f"\n{folder}/perplexity.png  {folder}/perplexity.csv")


def _run(config: Config, folder: Path, named: dict[str, str]) -> None:
    """Score every checkpoint under its encodings on every corpus, and write down what was found."""
    import jax

    from resonance_jax import data, evaluate, interop, report
    from resonance_jax.command.checkpoints import encodings_of, scale_note
    from resonance_jax.parallel.mesh import make_mesh

    if config.parallel not in ("none", "pmap", "mesh"):
        raise ValueError(f'unknown --parallel {config.parallel!r}; expected "none", "pmap" or "mesh".')
    mesh = make_mesh(data=-1) if config.parallel == "mesh" else None
    devices = jax.local_device_count() if config.parallel != "none" else 1
    device = jax.devices()[0]
    print(f"device: {devices} x {device.device_kind}, {config.dtype}, jax {jax.__version__}")
    tokenizer = data.tokenizer(config.tokenizer or next(iter(named.values())))
    texts = {corpus: token_documents(config, corpus, tokenizer) for corpus in config.corpora}
    results: Results = {corpus: {} for corpus in config.corpora}
    encodings: dict[str, rope.RopeSpec] = {}
    for name, path in named.items():
        print(f"loading {name} from {path}")
        lm = interop.load_hf(path, dtype=config.dtype, mesh=mesh)
        interop.check_vocabulary(tokenizer.vocab_size, lm.config.vocab_size, path)
        reach, asked = max(config.lengths), {"scale": config.scale, "train_length": config.train_length}
        for label, spec in encodings_of(lm.rope, config.encodings, name, list(named), reach, **asked).items():
            if note := scale_note(spec, lm.rope, config.scale, reach):
                print(f"{label}: {note}")
            encodings[label] = spec
            for corpus, documents in texts.items():
                store = evaluate.Store(folder / "nll" / slug(corpus) / slug(label))
                with report.Progress(f"{label} on {corpus}: documents") as progress:
                    results[corpus][label] = evaluate.sweep(
                        lm,
                        documents,
                        spec,
                        config.lengths,
                        config.protocol,
                        config.stride,
                        tokenizer.bos_id,
                        config.truncate,
                        pmap=config.parallel == "pmap",
                        progress=progress,
                        store=store,
                    )
    write_results(folder, config, results, encodings)


def token_documents(config: Config, corpus: str, tokenizer: data.Tokenizer) -> list[Ids]:
    """Token ids of the first documents that are long enough."""
    from resonance_jax import data, evaluate

    source = data.corpus(corpus, text_field=config.text_field, data_dir=config.data_dir)
    documents = evaluate.first_documents(
        source.split(config.split), tokenizer, config.documents, config.min_tokens
    )
    if not documents:
        raise ValueError(f"{corpus}: no document has {config.min_tokens} tokens; lower --min-tokens.")
    return documents


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return "".join(c if c.isalnum() else "-" for c in text).strip("-").lower()


def write_results(
    folder: Path, config: Config, results: Results, encodings: dict[str, rope.RopeSpec]
) -> None:
    """perplexity.csv and .png, positions.csv, and last perplexity.json, whose presence ends the run."""
    from resonance_jax import report, rope

    longest = max(config.lengths)
    lengths = report.doubling(min(config.lengths), longest)
    corpora: dict[str, dict[str, list]] = {}
    rows, positions = [], []
    for corpus, by_label in results.items():
        figures = [row for label, r in by_label.items() for row in report.figures(label, encodings[label], r)]
        gaps = []
        for label, spec in encodings.items():
            plain = label.removeprefix("Resonance ")
            if spec.resonance and plain in by_label:
                a, b = by_label[label], by_label[plain]
                gaps += [report.difference(label, a[n], plain, b[n]) for n in lengths]
        corpora[corpus] = {"rows": figures, "differences": gaps}
        rows += [{"corpus": corpus, **row} for row in figures]
        for label, by_length in by_label.items():
            positions += [{"corpus": corpus, **row} for row in report.positions(label, by_length[longest])]
    records = {
        label: rope.to_record(rope.frequencies(spec, length=longest), spec)
        for label, spec in encodings.items()
    }
    write_json(folder / "encodings.json", records)
    train_length = next((s.train_length for s in encodings.values() if s.train_length), None)
    report.perplexity_panels(results, folder / "perplexity.png", train_length)
    write_text(folder / "perplexity.csv", report.csv_text(rows))
    write_text(folder / "positions.csv", report.csv_text(positions))
    write_json(folder / "perplexity.json", {"table_lengths": lengths, "corpora": corpora})


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
