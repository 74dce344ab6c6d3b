"""What fine-tuning gained: perplexity by length of a base under several encodings, and after fine-tuning."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from resonance_jax.evaluate.encoding_sweeps import Subject
from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.files import FilePath, write_json, write_text
from resonance_jax.report.labels import FINETUNED
from resonance_jax.report.length_comparison import differences, protocol_sentences, write_sweeps
from resonance_jax.report.perplexity import DifferenceRow, FigureRow, doubling, table
from resonance_jax.report.provenance import machine
from resonance_jax.report.tables import markdown


class Gain(TypedDict):
    """The content of sweep.json.

    Attributes:
        rows: every encoding at every length.
        differences: of pairs at the longest length.
        table: perplexity at the lengths that fit on a page.
        corpus: what the text is.
        machine: where it was measured.
    """

    rows: list[FigureRow]
    differences: list[DifferenceRow]
    table: list[dict[str, str | float]]
    corpus: Mapping[str, object]
    machine: dict[str, str | int | float | None]


def write_gain(
    folder: FilePath,
    before: Sequence[Subject],
    after: Sequence[Subject],
    results: Mapping[str, Mapping[int, Perplexity]],
    title: str,
    text: Mapping[str, object],
) -> Gain:
    """Write sweep.csv, sweep.png, positions.csv, report.md and last sweep.json into a folder.

    Args:
        folder: of the run.
        before: the base, first under the encoding that it was trained with, then under others.
        after: what was fine-tuned, each labelled as the base under the same encoding, and FINETUNED.
        results: by label, the perplexity of all of them at every length.
        title: of the picture.
        text: data.Corpus.describe() of the text.
    """
    lengths = sorted(next(iter(results.values())))
    rows = write_sweeps(folder, "sweep", [*before, *after], results, title)
    labels = [subject.label for subject in after]
    pairs = [(label, label.removesuffix(FINETUNED)) for label in labels]
    pairs += [(label, before[0].label) for label in labels]
    twins = {label: label.removeprefix("Resonance ") for label in labels if label.startswith("Resonance ")}
    pairs += [(label, plain) for label, plain in twins.items() if plain in labels]
    gaps = differences(results, pairs, lengths[-1])
    for row in gaps:  # each has something fine-tuned on a side; the interval is over documents alone
        row["verdict"] = "one training: no verdict"
    gain: Gain = {
        "rows": rows,
        "differences": gaps,
        "table": table(rows, doubling(lengths[0], lengths[-1])),
        "corpus": text,
        "machine": machine(),
    }
    write_text(folder / "report.md", _report(gain, lengths[-1]))
    write_json(folder / "sweep.json", gain)
    return gain


def _report(gain: Gain, longest: int) -> str:
    """The text of report.md."""
    return "\n".join(
        [
            "Perplexity per token of held-out text by context length. "
            + protocol_sentences(gain["rows"][0], gain["corpus"]),
            "",
            markdown(gain["table"]),
            f"Differences at {longest:,}, nats per token:",
            "",
            markdown(gain["differences"]),
        ]
    )
