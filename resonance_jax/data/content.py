"""What a file holds, told by its first bytes: compression, byte order mark, a container of records, text.

A name's suffix decides only where content cannot: whether JSON in it is data or a text about something.
"""

import contextlib
import gzip
import io
import re
import types
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from resonance_jax.files import decode_utf8, found_at, reason

BOM = b"\xef\xbb\xbf"
HEAD_BYTES = 8192
COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PARQUET, ARROW = (b"PAR1",), (b"ARROW1\0\0", b"\xff\xff\xff\xff")
# Data that nothing here reads. A file that begins like this is refused by name, never taken for text.
UNREADABLE = (
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"BZh[1-9]1AY&SY", "compressed by bzip2: unpack it"),
    (rb"\xfd7zXZ\x00", "compressed by xz: unpack it"),
    (rb"\x04\x22\x4d\x18", "compressed by lz4: unpack it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it"),
    (rb"(?s:.{257})ustar", "a tar archive: unpack it"),
    (rb"\x93NUMPY", "a NumPy array: write the ids as records with input_ids"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file: convert it to parquet or JSON lines"),
    (rb"Obj\x01", "an Avro file: convert it to parquet or JSON lines"),
    (
        rb"\xff\xfe(?!\xff)|\xfe\xff",
        "UTF-16 or UTF-32 (it begins with such a byte order mark): convert it to UTF-8",
    ),
)


@dataclass(frozen=True)
class Line:
    """One line that is not blank, with its place in the (decompressed) file.

    Attributes:
        content: its bytes, with the line end.
        number: of the line, counted from 1.
        offset: of its first byte.
        where: names its place in error sentences.
    """

    content: bytes
    number: int
    offset: int
    where: str

    def text(self) -> str:
        """The line decoded. ValueError names the line and the byte that is not UTF-8."""
        return decode_utf8(self.content, self.where, self.offset)


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file as a stream, decompressed where they are gzip or zstd.

    Raises:
        ValueError: it is no regular file (a pipe would block), cannot be read to its end, or holds data of
            a kind that is not read here.
    """
    if (found := found_at(path)) != "a file":
        raise ValueError(f"{path} is {found}, expected a file.")
    try:
        with path.open("rb") as file, _decompressed(path, file) as stream:
            head = stream.peek(HEAD_BYTES)
            for pattern, found in UNREADABLE:
                if re.match(pattern, head):
                    raise ValueError(f"{path} is {found} first.")
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read to its end: {reason(error)}.") from None


def _decompressed(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    magic = file.peek(4)
    if magic.startswith(GZIP):
        raw = gzip.GzipFile(fileobj=file)
    elif magic.startswith(ZSTD):
        raw = pyarrow_for(path).CompressedInputStream(file, "zstd")
    else:
        return file
    inner = cast(io.BufferedReader, io.BufferedReader(cast(io.RawIOBase, raw), HEAD_BYTES))
    if inner.peek(4).startswith((GZIP, ZSTD)):
        raise ValueError(f"{path} is compressed twice: unpack it once first.")
    return inner


def container_of(path: Path) -> Literal["parquet", "arrow"] | None:
    """ "parquet" or "arrow" by the first bytes of the (decompressed) content, or None."""
    with open_content(path) as stream:
        head = stream.peek(8)
    return "parquet" if head.startswith(PARQUET) else "arrow" if head.startswith(ARROW) else None


def is_binary(path: Path) -> bool:
    """Whether there is a NUL byte in the first 8 KiB of the (decompressed) content: git's rule."""
    with open_content(path) as stream:
        return b"\0" in stream.read(HEAD_BYTES)


def read_text(path: Path) -> str:
    """The whole text, its line ends kept, a UTF-8 byte order mark in front dropped.

    Raises:
        ValueError: as `open_content`, or names the byte that is not UTF-8.
    """
    with open_content(path) as stream:
        content = stream.read()
    mark = len(BOM) if content.startswith(BOM) else 0
    return decode_utf8(content[mark:], str(path), mark)


def lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank, without the byte order marks that files joined together have in front.

    Raises:
        ValueError: as `open_content`.
    """
    offset = 0
    with open_content(path) as stream:
        for number, content in enumerate(stream, start=1):
            mark = len(BOM) if content.startswith(BOM) else 0
            if content[mark:].strip():
                yield Line(content[mark:], number, offset + mark, f"line {number} of {path}")
            offset += len(content)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, one of compression set aside: a.TXT.gz → .txt.

    A number is no suffix: the shards of "part.00000-of-00512" have none.
    """
    if Path(name).suffix.lower() in COMPRESSED_SUFFIXES:
        name = Path(name).stem
    suffix = Path(name).suffix.lower()
    return "" if suffix[1:2].isdigit() else suffix


def pyarrow_for(path: Path) -> types.ModuleType:
    """The pyarrow library. ValueError if it is not installed, naming the file that needs it."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"Reading {path} needs pyarrow: pip install pyarrow.") from None
    return pyarrow
