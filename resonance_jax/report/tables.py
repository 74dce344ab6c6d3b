"""The same rows as a terminal table, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, object]]
"""One mapping per row; the first row's keys are the columns."""

_MARKUP = re.compile(r"[\\`*<>\[\]|$]|(?<!\w)_|_(?!\w)")
"""What Markdown would read as markup; an underscore inside a word is not."""


def _cell(value: object) -> str:
    """A value as people read it: a number to four digits, nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def escaped(text: str) -> str:
    """A name, of a file or a checkpoint for example, as Markdown shows it letter by letter, on one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def markdown(rows: Rows) -> str:
    """A Markdown table; numbers to four digits, names escaped."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(map(escaped, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(escaped(_cell(row[c])) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def csv_text(rows: Rows) -> str:
    """CSV with every digit."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def print_table(rows: Rows, title: str | None = None) -> None:
    """Draw the table on the terminal. Names are shown as they are: rich does not read markup in them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heading = None if title is None else Text(title, style="italic")
    table = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(Text(column), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    width = None if Console().is_terminal else 160
    Console(width=width).print(table)
