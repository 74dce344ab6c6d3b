"""The documents of a local file, whose content decides how it is read.

| content | documents |
|---|---|
| parquet, arrow (a stream, as `datasets` saves it, or a file) | one per row |
| JSON lines, an array of JSON objects | one per object |
| anything else that is UTF-8 | one: the whole text |

gzip and zstd are unpacked on the way. Whether JSON is data or a text is decided like this. A file named
.jsonl, .ndjson or .json is data. One without a suffix, or named .txt, .text, .dat or .data, is data if its
first two lines are JSON objects, the first with the field of text or ids, or if it is an array of such
objects. Everything else (.py, .md …) is text, whatever it begins with.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from resonance_jax.data.content import container_of, is_binary, read_text, suffix_of
from resonance_jax.data.documents import Document, Item, LeftOut
from resonance_jax.data.records import json_items, json_shape
from resonance_jax.data.tables import table_items
from resonance_jax.files import half_surrogate

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
LINES_SUFFIXES = (".jsonl", ".ndjson")
OPEN_SUFFIXES = ("", ".txt", ".text", ".dat", ".data")

Kind = Literal["parquet", "arrow", "records", "objects", "text", "binary"]
""" "records": JSON objects with a field of text or ids. "objects": without; they may be data or a text."""


def kind_of(path: Path, text_field: str) -> Kind:
    """What a file is by its content, as the table above says.

    Args:
        path: a regular file.
        text_field: the field of records that holds the text.

    Raises:
        ValueError: it cannot be read, is of a kind that is not read here, or is no table although its name
            says so.
    """
    container, suffix = container_of(path), suffix_of(path.name)
    if container is not None:
        return container
    if suffix in TABLE_SUFFIXES:
        raise ValueError(
            f"{path} is not a parquet file or an arrow file: it is damaged, or its name is wrong."
        )
    if suffix in LINES_SUFFIXES:
        return "records"
    if suffix == ".json" or suffix in OPEN_SUFFIXES:
        shape = json_shape(path, text_field, second_line=suffix != ".json")
        if shape == "records" or (shape == "objects" and suffix == ".json"):
            return shape
    return "binary" if is_binary(path) else "text"


def file_items(path: Path, name: str, text_field: str, kind: Kind | None = None) -> Iterator[Item]:
    """The documents of one file, and what is left out of it because it holds no text.

    Args:
        path: the file.
        name: its document's name, or what the names of its records begin with.
        text_field: the field of records that holds the text; a field `input_ids` becomes Document.tokens.
        kind: what a reading of its folder took it for; None: its content decides, and .json is data.

    Raises:
        ValueError: names the file, line or row that cannot be read.
    """
    check_name(name)
    if kind is None:
        kind = kind_of(path, text_field)
        if suffix_of(path.name) == ".json" and kind in ("text", "binary"):
            kind = "records"
    if kind in ("parquet", "arrow"):
        yield from table_items(path, name, text_field, kind)
    elif kind in ("records", "objects"):
        yield from json_items(path, name, text_field)
    else:
        text = read_text(path)
        yield Document(name, text) if text else LeftOut(name, f"{path} is empty.")


def check_name(name: str) -> None:
    """Refuse a file name that is not UTF-8: it could not be printed, nor written into results."""
    if half_surrogate(name) is not None:
        raise ValueError(f"The file name {name!a} is not UTF-8: rename the file.")
