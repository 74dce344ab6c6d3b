"""The quickstart's result as tables, pictures and text: one document under every encoding, all under some."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from resonance_jax.evaluate.perplexity_result import BIN, Perplexity, merge
from resonance_jax.files import FilePath, write_text
from resonance_jax.report.perplexity import difference, document_differences, figures, positions
from resonance_jax.report.plots import perplexity_plot
from resonance_jax.report.provenance import machine
from resonance_jax.report.tables import csv_text, markdown, print_table
from resonance_jax.rope import RopeSpec

ByLabel = Mapping[str, Mapping[int, Perplexity]]
"""By label, then by length."""
Lines = list[dict[str, object]]

POSITIONS = 512
"""How many make one point of the picture."""


@dataclasses.dataclass(frozen=True)
class Heading:
    """What a result is about.

    Attributes:
        model: its name.
        text: data.Corpus.describe() of the documents.
        train_length: positions that the model was trained at; None where nothing says it.
    """

    model: str
    text: Mapping[str, object]
    train_length: int | None


def line(label: str, found: Mapping[int, Perplexity], train_length: int | None) -> str:
    """One encoding's perplexity of one document on one line, at the lengths of the table."""
    longest = max(found)
    parts = [f"{n:,}: {found[n].token_mean:.4g}" for n in shown_lengths(found, train_length)]
    return (
        f"{label}: perplexity to {'  '.join(parts)}; of the last quarter {last_quarter(found[longest]):.4g}"
    )


def shown_lengths(lengths: Iterable[int], train_length: int | None) -> list[int]:
    """The longest length, and up to three before it that divide the training length."""
    ordered = sorted(lengths)
    return [n for n in ordered if n == ordered[-1] or (train_length or ordered[-1]) % n == 0][-4:]


def last_quarter(found: Perplexity) -> float:
    """The perplexity of the tokens in the last quarter of the context (to BIN positions)."""
    start = 3 * found.length // (4 * BIN)
    return float(np.exp(found.position_nll[start:].sum() / found.position_scored[start:].sum()))


def write(
    folder: FilePath,
    results: Mapping[str, ByLabel],
    specs: Mapping[str, RopeSpec],
    head: Heading,
) -> dict[str, object]:
    """Write perplexity.csv, positions.csv, the pictures and report.md; returns quickstart.json's content.

    Args:
        folder: of the run.
        results: by document; documents without any result yet are left out.
        specs: every encoding by its label.
        head: what it is about.
    """
    done = {name: found for name, found in results.items() if found}
    first = next(iter(done))
    rows, places = [], []
    for name, by_label in done.items():
        for label, found in by_label.items():
            rows += [{"document": name, **row} for row in figures(label, specs[label], found)]
            places += [{"document": name, **row} for row in positions(label, found[max(found)])]
    write_text(folder / "perplexity.csv", csv_text(rows))
    write_text(folder / "positions.csv", csv_text(places))
    title = f"{head.model} without training, float32: {first}"
    perplexity_plot(done[first], folder / "perplexity.png", head.train_length, title, positions=POSITIONS)
    result: dict[str, object] = {
        "model": head.model,
        "train_length": head.train_length,
        "text": dict(head.text),
        "machine": machine(),
        "first": {"document": first, **part({first: done[first]}, head.train_length)},
    }
    if len(done) > 1:
        shared = [label for label in done[first] if all(label in found for found in done.values())]
        every = {name: {label: found[label] for label in shared} for name, found in done.items()}
        title = f"{head.model} without training, float32: {len(done)} documents"
        merged = together(every)
        perplexity_plot(merged, folder / "documents.png", head.train_length, title, positions=POSITIONS)
        result["all"] = {"documents": list(done), **part(every, head.train_length)}
    write_text(folder / "report.md", report_text(result))
    return result


def together(every: Mapping[str, ByLabel]) -> dict[str, dict[int, Perplexity]]:
    """Each encoding over all documents. every: by document; all have the same encodings and lengths."""
    numbered = [
        {
            label: {n: dataclasses.replace(r, document=np.full_like(r.document, i)) for n, r in found.items()}
            for label, found in by_label.items()
        }
        for i, by_label in enumerate(every.values())
    ]
    return {
        label: {n: merge([one[label][n] for one in numbered]) for n in found}
        for label, found in numbered[0].items()
    }


def part(every: Mapping[str, ByLabel], train_length: int | None) -> dict[str, Lines]:
    """The table and the differences of some documents, as quickstart.json has them."""
    merged = together(every)
    longest = max(max(found) for found in merged.values())
    shown = shown_lengths({n for found in merged.values() for n in found}, train_length)
    table: Lines = []
    for label, found in merged.items():
        by_length = {f"{n:,}": found[n].token_mean if n in found else None for n in shown}
        table.append({"encoding": label, **by_length, "last quarter": last_quarter(found[longest])})
    labels = list(merged)
    pairs = [(label, labels[0]) for label in labels[1:]]
    pairs += [(label, base) for label in labels if (base := label.removeprefix("Resonance ")) != label]
    gaps: Lines = []
    for a, b in pairs:
        if b not in merged:
            continue
        one, other = merged[a][longest], merged[b][longest]
        each = document_differences(one, other)
        row = dict(difference(a, one, b, other))
        if len(each) > 1:
            row["by document"] = "  ".join(f"{x:+.4f}" for x in each)
        gaps.append(row)
    return {"table": table, "differences": gaps}


def show(result: Mapping, folder: FilePath) -> None:
    """Print the tables. result: the content of quickstart.json."""
    for name, heading in (("first", "one document"), ("all", "all documents")):
        if name not in result:
            continue
        some = result[name]
        about = some["document"] if name == "first" else ", ".join(some["documents"])
        print_table(some["table"], f"{result['model']}, {about}: perplexity per token to each length")
        print_table(some["differences"], f"Differences, {heading}, nats per token, paired")
    print(NOTE)
    print(f"{folder}/perplexity.png  {folder}/report.md")


NOTE = (
    "Nothing was trained: the encodings are swapped into a model that was trained under its own. One model, "
    "few documents: this shows what scaling does past the training length, not which method is best."
)


def report_text(result: Mapping) -> str:
    """The text of report.md."""
    made = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    parts = [
        f"# {result['model']} past its training length",
        f"Protocol `prefix`, float32: one window per document, every token but the first scored. {NOTE}",
        f"Text: {result['text']['name']}, {result['text']['documents']} documents (SHA-1 "
        f"{str(result['text']['fingerprint'])[:12]}). Made by `python -m experiments.quickstart` on {made}.",
        f"## {result['first']['document']}, every encoding",
        markdown(result["first"]["table"]).rstrip(),
        "One document: no interval, no verdict. Differences in nats per token:",
        markdown(result["first"]["differences"]).rstrip(),
        "![perplexity by length and by position](perplexity.png)",
    ]
    if "all" in result:
        parts += [
            f"## {', '.join(result['all']['documents'])}",
            markdown(result["all"]["table"]).rstrip(),
            "Differences in nats per token, with Student's interval over the documents:",
            markdown(result["all"]["differences"]).rstrip(),
            "![perplexity by length and by position](documents.png)",
        ]
    return "\n\n".join(parts) + "\n"
