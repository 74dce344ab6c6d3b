"""The same rows as a terminal table, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, object]]
"""One mapping per row; the first row's keys are the columns."""


def _cell(value: object) -> str:
    """A value as people read it: a number to four digits, nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def markdown(rows: Rows) -> str:
    """A Markdown table; numbers to four digits."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def csv_text(rows: Rows) -> str:
    """CSV with every digit."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def print_table(rows: Rows, title: str | None = None) -> None:
    """Draw the table on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    width = None if Console().is_terminal else 160
    Console(width=width).print(table)
