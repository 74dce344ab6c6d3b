"""Names that mean something to rich, Markdown, CSV or matplotlib come out letter by letter."""

import csv
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from resonance_jax import report
from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.report import plots
from resonance_jax.report.training import loss_plot

NAMES = ("[/b]", "[red]a", "a|b", "$x_", "$\\frac{$", "50$ or $60", ":smile:", "<b>", "*a*", 'q"u,o', "_a_")


@pytest.mark.parametrize("name", NAMES)
def test_a_table_on_the_terminal(name, capsys):
    report.print_table([{name: name, "value": 1.0}], f"of {name}")
    assert capsys.readouterr().out.count(name) == 3


def test_a_markdown_table_keeps_its_columns_and_letters():
    rows = [{"name|": name, "value": 1} for name in NAMES]
    heading, _, *lines = report.markdown(rows).splitlines()
    assert heading == "| name\\| | value |"
    assert lines[0] == "| \\[/b\\] | 1 |" and lines[2] == "| a\\|b | 1 |" and lines[8] == "| \\*a\\* | 1 |"
    assert lines[3].startswith("| \\$x") and lines[7] == "| \\<b> | 1 |".replace(">", "\\>")
    assert (
        report.markdown([{"a": "two\nlines", "b": "gov_report"}]).splitlines()[2]
        == "| two lines | gov_report |"
    )


def test_csv_gives_every_name_back():
    text = report.csv_text([{"name": name} for name in NAMES])
    assert [row["name"] for row in csv.DictReader(io.StringIO(text))] == list(NAMES)


def result(length: int) -> Perplexity:
    one, bins = np.ones(1), np.ones(length // 64 + 1)
    counts = (one, one.astype(int), one.astype(int), bins, bins.astype(int))
    return Perplexity("prefix", length, None, None, *counts)


def drawn(path, monkeypatch, draw) -> list[str]:
    """The texts of a picture that was saved, all of which were to be taken literally."""
    found: list[Text] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (found.extend(self.findobj(Text)), save(self, *a, **k))
    )
    draw(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    ours = [text for text in found if "mathdefault" not in text.get_text()]  # the rest are numbers at ticks
    assert not any(text.get_parse_math() for text in ours if "$" in text.get_text())
    return [text.get_text() for text in found]


@pytest.mark.parametrize("name", NAMES[:8])
def test_every_picture(name, tmp_path, monkeypatch):
    by_length = {name: {64: result(64), 128: result(128)}}
    lines = {name: {name: np.ones((2, 8))}}
    pictures = {
        "perplexity": lambda path: plots.perplexity_plot(by_length, path, 64, f"of {name}"),
        "panels": lambda path: plots.perplexity_panels({name: by_length}, path, 64),
        "accuracy": lambda path: plots.accuracy_by_position_plot(lines, path, 4, 8, {name: (1.0, 0.5)}, name),
        "loss": lambda path: plots.validation_loss_plot(lines, path, np.arange(8.0), name),
        "training": lambda path: loss_plot([{"step": 1, "loss": 1.0, "grad_norm": 1.0}], path, name),
    }
    for title, draw in pictures.items():
        texts = drawn(tmp_path / f"{title}.png", monkeypatch, draw)
        assert any(name.replace("_", "-") in text.replace("_", "-") for text in texts), title
