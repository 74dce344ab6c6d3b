"""Records with a field of text, of ids, or both, in JSON lines, arrays and objects: the document in each."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32

from resonance_jax.data.content import Line, lines, read_text, suffix_of
from resonance_jax.data.documents import Document, Item, LeftOut
from resonance_jax.files import half_surrogate, of_kind, parse_json

TOKENS_FIELD = "input_ids"


def json_items(path: Path, name: str, text_field: str) -> Iterator[Item]:
    """The records of JSON lines, of a JSON array, or of one JSON object that is written over many lines.

    Args:
        path: the file.
        name: begins the documents' names, "name:line" (from 1), or "name:element" (from 0) in an array.
        text_field: the field of a record that holds the text.

    Raises:
        ValueError: names the line or element that is no JSON object, or whose text or ids have a wrong type.
    """
    rest = lines(path)
    first = next(rest, None)
    if first is None:
        return
    value = _value_over_lines(path, first)
    if value is None:
        for line in chain([first], rest):
            yield record_item(f"{name}:{line.number}", line_record(line), text_field, line.where)
    elif isinstance(value, list):
        for number, element in enumerate(value):
            where = f"element {number} of {path}"
            yield record_item(f"{name}:{number}", of_kind(element, dict, where), text_field, where)
    else:
        record = of_kind(value, dict, str(path))
        yield record_item(f"{name}:{first.number}", record, text_field, str(path))


def json_shape(path: Path, text_field: str, second_line: bool) -> Literal["records", "objects"] | None:
    """Whether a file is JSON: "records" with a field of text or ids, "objects" without, None for all else.

    Args:
        path: a file whose name leaves its content open.
        text_field: the field of a record that holds the text.
        second_line: whether the second line, if there is one, must be an object too.
    """
    rest = lines(path)
    first = next(rest, None)
    if first is None or first.content.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        value = _value_over_lines(path, first)
        if value is None:
            value = line_record(first)
            second = next(rest, None)
            if second_line and second is not None:
                line_record(second)
    except ValueError:
        return None
    found = value if isinstance(value, list) else [value]
    if not found or not isinstance(found[0], dict):
        return None
    return "records" if text_field in found[0] or TOKENS_FIELD in found[0] else "objects"


def line_record(line: Line) -> dict[str, object]:
    """The JSON object in one line. ValueError names the line and says what stands there instead."""
    return of_kind(parse_json(line.text(), line.where), dict, line.where)


def _value_over_lines(path: Path, first: Line) -> object:
    """The JSON value that the whole file is, or None if its first line is an object: JSON lines."""
    try:
        line_record(first)
    except ValueError as of_line:
        try:
            return parse_json(read_text(path), str(path))
        except ValueError as of_file:
            raise (of_file if suffix_of(path.name) == ".json" else of_line) from None
    return None


def record_item(name: str, record: Mapping[str, object], text_field: str, where: str) -> Item:
    """The document in a record, or why it is left out: text and ids missing, null or empty.

    Args:
        name: the document's name.
        record: its fields; `input_ids` becomes Document.tokens.
        text_field: the field that holds the text.
        where: names the record in error sentences.

    Raises:
        ValueError: the text is no string, or the ids are no flat list of whole numbers 0 ... 2^31 - 1.
    """
    text, ids = record.get(text_field), record.get(TOKENS_FIELD)
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"The field {text_field!r} in {where} is of type {type(text).__name__}, expected a string."
        )
    tokens = None if ids is None else _tokens(ids, where)
    if not text and (tokens is None or not len(tokens)):
        return LeftOut(name, _nothing_in(record, text_field, where))
    if text and (at := half_surrogate(text)) is not None:
        return LeftOut(name, f"The text in {where} holds half a surrogate pair at character {at}.")
    return Document(name, text or "", tokens)


def _nothing_in(record: Mapping[str, object], text_field: str, where: str) -> str:
    for field in (text_field, TOKENS_FIELD):
        if field in record:
            found = "null" if record[field] is None else "empty"
            return f"The field {field!r} in {where} is {found}."
    return missing(where, text_field, record)


def missing(where: str, text_field: str, fields: Iterable[str]) -> str:
    """The sentence about records that have neither field.

    Args:
        where: names the record or the file.
        text_field: the field that was expected to hold the text.
        fields: those that are there.
    """
    return (
        f"There is no field {text_field!r} and no {TOKENS_FIELD!r} in {where}; its fields are "
        f"{', '.join(map(str, fields)) or 'none'}: say which one holds the text with text_field."
    )


def _tokens(ids: object, where: str) -> Int32[np.ndarray, "T"]:
    try:
        tokens = np.asarray(ids)
    except ValueError:  # lists of unequal lengths
        tokens = np.empty((0, 0))
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise ValueError(f"The field {TOKENS_FIELD!r} in {where} is not a flat list of whole numbers.")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**31:
        raise ValueError(f"The field {TOKENS_FIELD!r} in {where} holds a number outside 0 ... 2^31 - 1.")
    return tokens.astype(np.int32)
