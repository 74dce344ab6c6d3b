"""What fine-tuning gained: perplexity of held-out text by length, of the base and of what became of it."""

from pathlib import Path

from configs.finetune import Config
from experiments.quickstart import FINETUNED, cut_pieces, remember_corpus
from resonance_jax.files import write_json, write_text

UNTRAINED = ("default", "dynamic_ntk")
"""Methods that the base is scored under beside those that it is fine-tuned with."""


def sweep(config: Config, folder: Path, local: Path, base, tuned: dict, tokenizer) -> dict:
    """Score the base under several encodings, and each of `tuned` ({RopeSpec: HF directory}) under its own.

    Writes sweep.csv, positions.csv, sweep.png, report.md and sweep.json into folder; returns the last.
    """
    from resonance_jax import data, evaluate, interop, report, rope

    heldout = data.corpus(config.corpus, text_field=config.text_field, data_dir=config.data_dir).split(
        "heldout"
    )
    remember_corpus(folder / "corpus.json", {"heldout": heldout.describe()})
    pieces, owners = cut_pieces(heldout, tokenizer, config)
    train_length = next(iter(tuned)).train_length
    plain = [
        rope.RopeSpec(method, head_dim=base.rope.head_dim, base=base.rope.base, train_length=train_length)
        for method in UNTRAINED
    ]
    rows = [(spec.title, spec, base) for spec in (*plain, *tuned)]
    rows += [
        (spec.title + FINETUNED, spec, interop.load_hf(path, mesh=base.mesh)) for spec, path in tuned.items()
    ]
    results = {}
    with report.Progress("evaluate", {"encoding": str}) as progress:
        for done, (label, spec, lm) in enumerate(rows):
            progress(done, len(rows), encoding=label)
            results[label] = evaluate.sweep(
                lm,
                pieces,
                spec,
                range(train_length, config.length + 1, train_length),
                protocol="prefix",
                bos_id=tokenizer.bos_id,
                groups=owners,
                store=evaluate.Store(local / "nll" / label.replace(", ", "-").replace(" ", "-")),
            )
        progress(len(rows), len(rows))
    return _write(config, folder, rows, results, heldout.describe())


def _write(config: Config, folder: Path, rows, results, text: dict) -> dict:
    from resonance_jax import report

    train_length = rows[-1][1].train_length
    figures = [row for label, spec, _ in rows for row in report.figures(label, spec, results[label])]
    at = lambda label: results[label][config.length]
    compare = lambda a, b: report.difference(a, at(a), b, at(b))
    tuned = [label for label in results if label.endswith(FINETUNED)]
    differences = [compare(label, label.removesuffix(FINETUNED)) for label in tuned]
    differences += [compare(label, rows[0][0]) for label in tuned]
    differences += [
        compare(label, label.removeprefix("Resonance "))
        for label in tuned
        if label.startswith("Resonance ") and label.removeprefix("Resonance ") in tuned
    ]
    result = {
        "rows": figures,
        "differences": differences,
        "table": report.table(figures, report.doubling(train_length, config.length)),
        "corpus": text,
        "machine": report.machine(),
    }
    title = (
        f"Trained at {train_length}, fine-tuned for {config.steps} steps at {config.length} (held-out text)"
    )
    report.perplexity_plot(results, folder / "sweep.png", train_length, title)
    write_text(folder / "sweep.csv", report.csv_text(figures))
    by_position = [row for label in results for row in report.positions(label, at(label))]
    write_text(folder / "positions.csv", report.csv_text(by_position))
    write_text(folder / "report.md", _report_text(result, config))
    write_json(folder / "sweep.json", result)
    return result


def _report_text(result: dict, config: Config) -> str:
    from resonance_jax import report

    text, scored = result["corpus"], result["rows"][0]
    python = f" of Python {text['python']}" if "python" in text else ""
    return "\n".join(
        [
            f"Perplexity a token of held-out text by context length. Protocol `prefix`: BOS and the first "
            f"n-1 tokens, every token after BOS scored; {scored['windows']} pieces of "
            f"{scored['documents']} documents, the same at every length. Text: {text['name']}{python} (SHA-1 "
            f"{text['fingerprint'][:12]}). Intervals: bootstrap over documents.",
            "",
            report.markdown(result["table"]),
            f"Differences at {config.length:,}, nats a token:",
            "",
            report.markdown(result["differences"]),
        ]
    )
