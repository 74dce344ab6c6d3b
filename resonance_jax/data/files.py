"""Documents from local files: text, JSON lines (plain, .gz, .zst) and parquet, one at a time."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARD_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
TOKENS_FIELD = "input_ids"


@dataclass(frozen=True)
class Document:
    """One document: a name that is unique in its corpus, its text, and its tokens if it came tokenized.

    `tokens` is int32 [T] as the file had them, or None; `text` is empty if the file held only tokens.
    """

    name: str
    text: str
    tokens: np.ndarray | None = None


Reader = Callable[[], Iterator[Document]]


def file_documents(path: Path, name: str, text_field: str) -> Iterator[Document]:
    """The documents of one file, by its suffix: a record each for jsonl and parquet, otherwise one text."""
    if path.name.endswith(".parquet"):
        yield from _parquet_documents(path, name, text_field)
    elif path.name.endswith(SHARD_SUFFIXES):
        yield from _jsonl_documents(path, name, text_field)
    else:
        yield Document(name, read_text(path))


def folder_files(folder: Path) -> list[tuple[Path, str]]:
    """(path, name) of a folder's documents, sorted by name, the relative path with forward slashes.

    A folder that holds jsonl or parquet files is read as shards, other files left out; otherwise every text
    file (no NUL byte in its first 8 KiB, git's rule) counts. Hidden files and folders are left out.
    """
    files = walk(folder, lambda part: not part.startswith("."))
    shards = [(path, name) for path, name in files if name.endswith(SHARD_SUFFIXES)]
    return shards or [(path, name) for path, name in files if not _is_binary(path)]


def walk(folder: Path, wanted: Callable[[str], bool]) -> list[tuple[Path, str]]:
    """(path, relative posix path) of the files below `folder` all of whose parts are wanted, sorted."""
    found = []
    for root, directories, names in os.walk(folder):
        directories[:] = filter(wanted, directories)
        for name in filter(wanted, names):
            path = Path(root, name)
            if path.is_file():
                found.append((path, path.relative_to(folder).as_posix()))
    return sorted(found, key=lambda file: file[1])


def read_text(path: Path) -> str:
    """The file's text, line ends kept. ValueError names the file and the byte that is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    return _decode(data, str(path))


def _decode(data: bytes, where: str, start: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8: byte {data[error.start]:#04x} at offset {start + error.start}; "
            "convert it to UTF-8 first."
        ) from None


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(8192)


def _jsonl_documents(path: Path, name: str, text_field: str) -> Iterator[Document]:
    for line in lines(path):
        yield _document(f"{name}:{line.number}", line.record(), text_field, line.where)


@dataclass(frozen=True)
class Line:
    """One line that is not blank, with its place in the (decompressed) file."""

    content: bytes
    number: int
    offset: int
    where: str

    def record(self) -> dict:
        """The JSON object in it. ValueError names the line."""
        text = _decode(self.content, self.where, self.offset)
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.where} is not JSON ({error}); every line must be one JSON object."
            ) from None
        if not isinstance(record, dict):
            raise ValueError(f"{self.where} is not a JSON object but a {type(record).__name__}.")
        return record


def lines(path: Path) -> Iterator[Line]:
    """The lines of a .jsonl, .jsonl.gz or .jsonl.zst. ValueError if it cannot be read to its end."""
    offset = 0
    try:
        with _open(path) as file:
            for number, content in enumerate(file, start=1):
                if content.strip():
                    yield Line(content, number, offset, f"line {number} of {path}")
                offset += len(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read to its end: {error}.") from error


def _open(path: Path) -> io.BufferedIOBase:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.endswith(".zst"):
        return io.BufferedReader(_pyarrow(path).input_stream(path, compression="zstd"))
    return path.open("rb")


def _parquet_documents(path: Path, name: str, text_field: str) -> Iterator[Document]:
    arrow = _pyarrow(path)
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}.") from None
    with file:
        fields = [field for field in (text_field, TOKENS_FIELD) if field in file.schema_arrow.names]
        if not fields:
            raise ValueError(_missing(str(path), text_field, file.schema_arrow.names))
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=fields):
            for row in range(batch.num_rows):
                record = {field: batch[field][row] for field in fields}
                record = {
                    field: value.as_py() if field == text_field else value.values
                    for field, value in record.items()
                }
                yield _document(f"{name}:{number}", record, text_field, f"row {number} of {path}")
                number += 1


def _document(name: str, record: dict, text_field: str, where: str) -> Document:
    if text_field not in record and TOKENS_FIELD not in record:
        raise ValueError(_missing(where, text_field, record))
    text = record.get(text_field, "")
    if not isinstance(text, str):
        raise ValueError(f"The field {text_field!r} in {where} is {type(text).__name__}, expected a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text in {where} holds half a surrogate pair at character {error.start}."
        ) from None
    return Document(name, text, _tokens(record[TOKENS_FIELD], where) if TOKENS_FIELD in record else None)


def _tokens(values, where: str) -> np.ndarray:
    try:
        tokens = np.asarray(values)
    except ValueError:
        tokens = np.empty((0, 0))
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise ValueError(f"The field {TOKENS_FIELD!r} in {where} is not a flat list of whole numbers.")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**31:
        raise ValueError(f"The field {TOKENS_FIELD!r} in {where} holds a number outside 0 ... 2^31 - 1.")
    return tokens.astype(np.int32)


def _missing(where: str, text_field: str, fields) -> str:
    return (
        f"There is no field {text_field!r} and no {TOKENS_FIELD!r} in {where}; its fields are "
        f"{', '.join(fields) or 'none'}: say which one holds the text with text_field."
    )


def _pyarrow(path: Path):
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"Reading {path} needs pyarrow: pip install pyarrow.") from None
    return pyarrow
