"""Perplexity against context length: checkpoints x encodings x corpora x lengths, in one resumable run.

    python -m experiments.perplexity sweep --checkpoints base=PATH --corpora stdlib --encodings own yarn
    python -m experiments.perplexity figure4-llama2-7b --help

Stop it at any time: the same command goes on with the next document.
"""

from pathlib import Path

from configs.perplexity import PRESETS, Config
from experiments.command import main, open_run
from resonance_jax.files import read_json, write_json, write_text


def run(config: Config) -> None:
    named = checkpoint_paths(config)
    folder = open_run("perplexity", config)
    if not (folder / "perplexity.json").exists():
        _run(config, folder, named)
    from resonance_jax.report.tables import print_table

    result = read_json(folder / "perplexity.json")
    lengths = result["table_lengths"]
    for corpus, part in result["corpora"].items():
        from resonance_jax.report.perplexity import table

        print_table(table(part["rows"], lengths), f"{corpus}: perplexity over tokens, {config.protocol}")
        if part["differences"]:
            print_table(part["differences"], "Paired differences, nats a token")
    print(f"\n{folder}/perplexity.png  {folder}/perplexity.csv")


def checkpoint_paths(config: Config) -> dict[str, str]:
    """NAME=PATH or PATH -> {name: path}."""
    named = {}
    for entry in config.checkpoints:
        name, _, path = entry.rpartition("=")
        named[name or Path(path).name] = path
    if not named:
        raise ValueError(
            "no checkpoint to score; give --checkpoints PATH (or NAME=PATH), a Hugging Face directory."
        )
    if len(named) < len(config.checkpoints):
        raise ValueError(
            f"two checkpoints share a name among {', '.join(config.checkpoints)}; use NAME=PATH."
        )
    for name, path in named.items():
        if not Path(path).is_dir():
            raise ValueError(f"checkpoint {name}: {path} is not a directory; expected one with config.json.")
    return named


def _run(config: Config, folder: Path, named: dict[str, str]) -> None:
    import jax

    from resonance_jax import data, evaluate, interop, report
    from resonance_jax.parallel.mesh import make_mesh

    if config.parallel not in ("none", "pmap", "mesh"):
        raise ValueError(f'unknown --parallel {config.parallel!r}; expected "none", "pmap" or "mesh".')
    mesh = make_mesh(data=-1) if config.parallel == "mesh" else None
    devices = jax.local_device_count() if config.parallel != "none" else 1
    device = jax.devices()[0]
    print(f"device: {devices} x {device.device_kind}, {config.dtype}, jax {jax.__version__}")
    tokenizer = data.tokenizer(config.tokenizer or next(iter(named.values())))
    texts = {corpus: token_documents(config, corpus, tokenizer) for corpus in config.corpora}
    results: dict[str, dict] = {corpus: {} for corpus in config.corpora}
    encodings: dict[str, tuple] = {}
    for name, path in named.items():
        print(f"loading {name} from {path}")
        lm = interop.load_hf(path, dtype=config.dtype, mesh=mesh)
        _check_vocabulary(tokenizer, lm, path)
        for label, spec in encodings_of(config, name, lm, len(named)).items():
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


def token_documents(config: Config, corpus: str, tokenizer) -> list:
    """Token arrays of the first documents that are long enough."""
    from resonance_jax import data

    source = data.corpus(corpus, text_field=config.text_field, data_dir=config.data_dir)
    documents = []
    for document in source.split(config.split):
        tokens = document.tokens if document.tokens is not None else tokenizer.encode(document.text)
        if len(tokens) >= config.min_tokens:
            documents.append(tokens)
        if len(documents) == config.documents:
            break
    if not documents:
        raise ValueError(f"{corpus}: no document has {config.min_tokens} tokens; lower --min-tokens.")
    return documents


def _check_vocabulary(tokenizer, lm, path: str) -> None:
    if tokenizer.vocab_size > lm.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but {path} embeds {lm.config.vocab_size}; "
            "give the model's own with --tokenizer."
        )


def encodings_of(config: Config, name: str, lm, checkpoints: int) -> dict:
    """{label: RopeSpec} that this checkpoint is scored under."""
    import dataclasses

    from resonance_jax import rope

    own = lm.rope
    specs = {}
    for entry in config.encodings:
        method, _, only = entry.partition("@")
        if only and only not in {n.rpartition("=")[0] or Path(n).name for n in config.checkpoints}:
            raise ValueError(
                f"encoding {entry!r} names no checkpoint; there are {', '.join(config.checkpoints)}."
            )
        if only and only != name:
            continue
        if method == "own":
            spec, title = own, f"{own.title} (own)"
        else:
            spec = rope.named(
                method,
                head_dim=own.head_dim,
                base=own.base,
                partial_rotary_factor=own.partial_rotary_factor,
                train_length=config.train_length or own.train_length,
                scale=config.scale,
            )
            if spec.method == own.method:
                spec = dataclasses.replace(own, resonance=spec.resonance)
            title = spec.title
        specs[title if checkpoints == 1 else f"{title}, {name}"] = spec
    return specs


def slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-").lower()


def write_results(folder: Path, config: Config, results: dict, encodings: dict) -> None:
    from resonance_jax import report, rope

    longest = max(config.lengths)
    written: dict = {"table_lengths": report.doubling(min(config.lengths), longest), "corpora": {}}
    rows, positions = [], []
    for corpus, by_label in results.items():
        figures = [row for label, r in by_label.items() for row in report.figures(label, encodings[label], r)]
        differences = []
        for label, spec in encodings.items():
            plain = label.removeprefix("Resonance ")
            if spec.resonance and plain in by_label:
                a, b = by_label[label], by_label[plain]
                differences += [report.difference(label, a[n], plain, b[n]) for n in written["table_lengths"]]
        written["corpora"][corpus] = {"rows": figures, "differences": differences}
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
    write_json(folder / "perplexity.json", written)


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
