"""The results of evaluate.sweep_each for people: rows, differences, a picture, sentences about the text."""

from collections.abc import Mapping, Sequence

from resonance_jax.evaluate.encoding_sweeps import Subject
from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.files import FilePath, write_text
from resonance_jax.report.perplexity import DifferenceRow, FigureRow, difference, figures, positions
from resonance_jax.report.plots import perplexity_plot
from resonance_jax.report.tables import csv_text


def write_sweeps(
    folder: FilePath,
    name: str,
    subjects: Sequence[Subject],
    results: Mapping[str, Mapping[int, Perplexity]],
    title: str,
    unit: str = "token",
) -> list[FigureRow]:
    """Write NAME.csv, NAME.png and positions.csv into a folder; returns the rows of NAME.csv.

    Args:
        folder: of the run.
        name: of the files.
        subjects: what was evaluated, in the order of the rows.
        results: by label, each subject's perplexity at every length.
        title: of the picture.
        unit: what a token is, for the picture's axes.
    """
    rows = [row for each in subjects for row in figures(each.label, each.spec, results[each.label])]
    longest = max(next(iter(results.values())))
    perplexity_plot(results, folder / f"{name}.png", subjects[0].spec.train_length, title, unit)
    write_text(folder / f"{name}.csv", csv_text(rows))
    by_position = [row for label, found in results.items() for row in positions(label, found[longest])]
    write_text(folder / "positions.csv", csv_text(by_position))
    return rows


def differences(
    results: Mapping[str, Mapping[int, Perplexity]], pairs: Sequence[tuple[str, str]], length: int
) -> list[DifferenceRow]:
    """Subject a minus subject b at one length, for each pair of labels (a, b)."""
    return [difference(a, results[a][length], b, results[b][length]) for a, b in pairs]


def protocol_sentences(row: FigureRow, text: Mapping[str, object], unit: str = "token") -> str:
    """What was scored of which text, for a report.

    Args:
        row: any row of `write_sweeps`.
        text: data.Corpus.describe() of the text.
        unit: what a token is.
    """
    python = f" of Python {text['python']}" if "python" in text else ""
    return (
        f"Protocol `prefix`: BOS and the first n-1 {unit}s, every {unit} after BOS scored; {row['windows']} "
        f"pieces of {row['documents']} held-out documents, the same at every length. Text: {text['name']}"
        f"{python} (SHA-1 {str(text['fingerprint'])[:12]}). Intervals: bootstrap over documents."
    )
