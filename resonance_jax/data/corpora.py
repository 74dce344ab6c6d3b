"""Corpora by name or path: documents that can be read again and again, their splits and a fingerprint.

`stdlib` is embedded: the interpreter's own standard library, a real corpus of long documents that every
machine has. It differs between Python versions, so its description carries the version, and figures on it
are never compared across interpreters. `passages` is three pieces of books that come with the project, the
same everywhere (data/passages.py).
"""

import functools
import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from resonance_jax.data.documents import Document, Item, LeftOut, LeftOutWarning, Reader
from resonance_jax.data.files import check_name, file_items
from resonance_jax.data.folders import File, folder_files, walk
from resonance_jax.data.passages import passages
from resonance_jax.data.splits import split_by_name
from resonance_jax.files import found_at

NAMES = ("passages", "stdlib", "pg19", "gov_report/<config>", "scrolls/gov_report")


@dataclass(frozen=True)
class Survey:
    """What a whole reading of a corpus found: documents, bytes of text (UTF-8), SHA-1 of all of it (hex)."""

    documents: int
    bytes: int
    fingerprint: str


class Corpus:
    """A named sequence of documents, read from its source at every iteration.

    Iterating warns (LeftOutWarning) at its end if some documents were left out; `documents` tells of each.
    Both raise ValueError where a file cannot be read, where no document is left, and where the text is not
    that of an earlier reading.
    """

    def __init__(
        self,
        name: str,
        read: Reader,
        splits: Mapping[str, Reader],
        facts: Mapping[str, str] | None = None,
        default_split: str = "all",
    ) -> None:
        """
        Args:
            name: for people; it is no part of the fingerprint.
            read: reads all documents, and what is left out of the source.
            splits: readers of the named splits; "all" is added.
            facts: what else `describe` tells.
            default_split: the split to score where the user names none.
        """
        self.name = name
        self.default_split = default_split
        self._read = read
        self._splits = splits
        self._facts = dict(facts or {})
        self._known: Survey | None = None

    def __iter__(self) -> Iterator[Document]:
        left_out: list[LeftOut] = []
        yield from self.documents(left_out.append)
        if left_out:
            warnings.warn(
                f"{self.name}: {len(left_out)} document(s) left out; the first: {left_out[0].reason}",
                LeftOutWarning,
            )

    def documents(self, left_out: Callable[[LeftOut], None]) -> Iterator[Document]:
        """The documents in order; what has no usable text or ids is passed to `left_out` and skipped."""
        digest, count, size, skipped = hashlib.sha1(), 0, 0, []
        empty = True
        for item in self._read():
            if isinstance(item, LeftOut):
                skipped.append(item)
                left_out(item)
                continue
            size += _add(digest, item)
            count += 1
            empty = empty and not item.text and (item.tokens is None or not len(item.tokens))
            yield item
        if empty:
            why = f"; {len(skipped)} document(s) left out. {skipped[0].reason}" if skipped else "."
            raise ValueError(f"The corpus {self.name} is empty: it holds no text{why}")
        self._remember(Survey(count, size, digest.hexdigest()))

    def _remember(self, found: Survey) -> None:
        if self._known is not None and found != self._known:
            raise ValueError(
                f"The text of the corpus {self.name} changed while it was being used: start again."
            )
        self._known = found

    def split(self, name: str | None = None, max_bytes_per_document: int | None = None) -> "Corpus":
        """One split, itself a corpus.

        Args:
            name: "train", "heldout" or "all"; a corpus of TFDS also has its own names. None takes
                `default_split`: all of a user's own file or folder, otherwise what is held out.
            max_bytes_per_document: keep only so much of the head of each text, cut at a character boundary.

        Raises:
            ValueError: there is no such split, or the limit is below 1.
        """
        name = self.default_split if name is None else name
        readers = {"all": self._read, **self._splits}
        if name not in readers:
            raise ValueError(f"The corpus {self.name} has no split {name!r}; it has {', '.join(readers)}.")
        read = readers[name]
        if max_bytes_per_document is not None:
            if max_bytes_per_document < 1:
                raise ValueError(f"max_bytes_per_document must be at least 1, not {max_bytes_per_document}.")
            read = functools.partial(_heads, read, max_bytes_per_document)
        return Corpus(f"{self.name}/{name}", read, {}, self._facts)

    @property
    def was_read(self) -> bool:
        """Whether the corpus was read to its end, so that `fingerprint` costs nothing more."""
        return self._known is not None

    @property
    def fingerprint(self) -> str:
        """SHA-1 (hex) of the names and texts (or ids) in order; reads all documents unless that was done."""
        return self._survey().fingerprint

    def describe(self) -> dict[str, str | int]:
        """name, documents, bytes (UTF-8), fingerprint; for `stdlib` also the Python version."""
        return {"name": self.name, **asdict(self._survey()), **self._facts}

    def _survey(self) -> Survey:
        if self._known is None:
            for _ in self.documents(lambda _: None):
                pass
        assert self._known is not None
        return self._known


def _add(digest: "hashlib._Hash", document: Document) -> int:
    """Add a document to the digest; returns the bytes of its text."""
    name, text = document.name.encode(), document.text.encode()
    tokens = b"" if document.tokens is None else document.tokens.astype("<i4").tobytes()
    digest.update(b"%d %d %d\n" % (len(name), len(text), len(tokens)))
    for part in (name, text, tokens):
        digest.update(part)
    return len(text)


def corpus(
    name_or_path: str | Path, *, text_field: str = "text", data_dir: str | Path | None = None
) -> Corpus:
    """A corpus by name (see NAMES), or of a file or folder; a file's content decides how it is read.

    A text is one document; JSON lines, JSON arrays, parquet and arrow give one per record; gzip and zstd are
    unpacked (data/files.py has the rules). A folder gives the records of its shards, or every text below it.
    Records without text are left out with a warning. A file or folder is split by a hash of each document's
    name, about one in ten held out; of a single document the last tenth is held out. `pg19`,
    `gov_report/<config>` and `scrolls/gov_report` are read from a directory that TensorFlow Datasets
    prepared; "heldout" is its test split.

    Args:
        name_or_path: a name, a file or a folder.
        text_field: the field of records that holds the text; `input_ids` becomes Document.tokens.
        data_dir: where the prepared TFDS datasets are (default: TFDS's own place).

    Raises:
        ValueError: there is no such name, file or folder, or the folder holds other files beside records.
    """
    name = str(name_or_path)
    if name == "stdlib":
        return _stdlib()
    if name == "passages":
        return Corpus(name, passages, {})
    if name == "pg19" or name.startswith(("gov_report/", "scrolls/")):
        from resonance_jax.data import tfds_corpora

        return Corpus(name, *tfds_corpora.readers(name, data_dir), default_split="heldout")
    path = Path(name_or_path)
    found = found_at(path) if name else "missing"
    if found == "a folder":
        read = functools.partial(_files, folder_files(path, text_field), text_field)
    elif found == "a file":
        read = functools.partial(file_items, path, path.name, text_field)
    elif found == "a pipe or a device":
        raise ValueError(f"{path} is a pipe or a device: save what it holds in a file first.")
    else:
        raise ValueError(
            f"There is no file or folder {name!r} and no corpus of that name; known are {', '.join(NAMES)}."
        )
    check_name(path.resolve().name)
    return Corpus(path.resolve().name, read, split_by_name(read))


def _files(files: list[File], text_field: str) -> Iterator[Item]:
    for file in files:
        yield from file_items(file.path, file.name, text_field, file.kind)


def _stdlib() -> Corpus:
    read = functools.partial(_stdlib_documents, Path(sysconfig.get_path("stdlib")))
    facts = {"python": platform.python_version()}
    return Corpus("stdlib", read, split_by_name(read), facts, default_split="heldout")


def _stdlib_documents(root: Path) -> Iterator[Document]:
    left_out = {
        *("test", "tests", "idle_test", "__pycache__"),
        *("site-packages", "dist-packages"),
        *("encodings", "pydoc_data"),
    }
    for path, name in walk(root, lambda part: part not in left_out):
        if name.endswith(".py") and path.is_file():
            try:
                yield Document(name, path.read_bytes().decode("utf-8"))
            except UnicodeDecodeError:
                continue


def _heads(read: Reader, size: int) -> Iterator[Item]:
    for item in read():
        if isinstance(item, Document):
            if item.tokens is not None:
                raise ValueError(f"{item.name} is already tokenized: max_bytes_per_document is for text.")
            item = replace(item, text=item.text.encode()[:size].decode(errors="ignore"))
        yield item
