"""Corpora by name or path: re-iterable documents with a train and a held-out split and a fingerprint.

`stdlib` is embedded: the interpreter's own standard library, a real corpus of long documents that every
machine has. It differs between Python versions, so its description carries the version, and figures on it
are never compared across interpreters.
"""

import functools
import hashlib
import platform
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from resonance_jax.data.files import Document, Reader, file_documents, folder_files, walk

HELDOUT_ONE_IN = 10
NAMES = ("stdlib", "pg19", "gov_report/<config>", "scrolls/gov_report")


class Corpus:
    """A named sequence of documents that can be iterated again and again, read from its source each time.

    Raises (on reading) ValueError if there is no document or no text in it.
    """

    def __init__(
        self, name: str, read: Reader, splits: Mapping[str, Reader], facts: Mapping[str, str] | None = None
    ):
        self.name = name
        self._read = read
        self._splits = splits
        self._facts = dict(facts or {})

    def __iter__(self) -> Iterator[Document]:
        empty = True
        for document in self._read():
            empty = empty and not document.text and (document.tokens is None or not len(document.tokens))
            yield document
        if empty:
            raise ValueError(f"The corpus {self.name} is empty: it holds no text.")

    def split(self, name: str, max_bytes_per_document: int | None = None) -> "Corpus":
        """One split, itself a corpus: "train", "heldout", or "all"; a TFDS corpus also takes its own names.

        max_bytes_per_document: keep only so much from the head of each text, cut at a character boundary.
        """
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
    def fingerprint(self) -> str:
        """SHA-1 (hex) of the names and texts (or tokens) in order; the first call reads every document."""
        return self._survey["fingerprint"]

    def describe(self) -> dict:
        """name, documents, bytes (UTF-8), fingerprint; for `stdlib` also the Python version."""
        return {"name": self.name, **self._survey, **self._facts}

    @functools.cached_property
    def _survey(self) -> dict:
        digest, documents, size = hashlib.sha1(), 0, 0
        for document in self:
            name, text = document.name.encode(), document.text.encode()
            tokens = b"" if document.tokens is None else document.tokens.astype("<i4").tobytes()
            digest.update(b"%d %d %d\n" % (len(name), len(text), len(tokens)))
            for part in (name, text, tokens):
                digest.update(part)
            documents, size = documents + 1, size + len(text)
        return {"documents": documents, "bytes": size, "fingerprint": digest.hexdigest()}


def corpus(
    name_or_path: str | Path, *, text_field: str = "text", data_dir: str | Path | None = None
) -> Corpus:
    """A corpus by name (see NAMES) or by path: a text file, a folder, a .jsonl(.gz, .zst), a .parquet.

    A text file is one document; a folder gives every text file below it, or the records of its jsonl and
    parquet files if it has some. The split is by a hash of each document's name, about one in ten held out;
    of a single document the last tenth is held out, cut at a line break. `pg19`, `gov_report/<config>` and
    `scrolls/gov_report` are read from a directory that TensorFlow Datasets prepared; "heldout" is its test.

    text_field: the field of jsonl and parquet records that holds the text. A field `input_ids` becomes
    Document.tokens.
    data_dir: where the prepared TFDS datasets are (default: TFDS's own).

    Raises ValueError, in one sentence, if there is no such name or path.
    """
    name = str(name_or_path)
    if name == "stdlib":
        return _stdlib()
    if name == "pg19" or name.startswith(("gov_report/", "scrolls/")):
        from resonance_jax.data import tfds_corpora

        return Corpus(name, *tfds_corpora.readers(name, data_dir))
    path = Path(name_or_path)
    if path.is_dir():
        files = functools.cache(lambda: folder_files(path))
        if not files():
            raise ValueError(
                f"The folder {path} holds no text file: expected text, .jsonl or .parquet below it."
            )
        read = lambda: _documents(files(), text_field)
    elif path.is_file():
        read = functools.partial(file_documents, path, path.name, text_field)
    else:
        raise ValueError(
            f"There is no file or folder {name!r} and no corpus of that name; known are {', '.join(NAMES)}."
        )
    return Corpus(path.resolve().name, read, _split_by_name(read))


def _stdlib() -> Corpus:
    read = functools.partial(_stdlib_documents, Path(sysconfig.get_path("stdlib")))
    return Corpus("stdlib", read, _split_by_name(read), {"python": platform.python_version()})


def _stdlib_documents(root: Path) -> Iterator[Document]:
    left_out = {
        *("test", "tests", "idle_test", "__pycache__"),
        *("site-packages", "dist-packages"),
        *("encodings", "pydoc_data"),
    }
    for path, name in walk(root, lambda part: part not in left_out):
        if name.endswith(".py"):
            try:
                yield Document(name, path.read_bytes().decode("utf-8"))
            except UnicodeDecodeError:
                continue


def _documents(files: list[tuple[Path, str]], text_field: str) -> Iterator[Document]:
    for path, name in files:
        yield from file_documents(path, name, text_field)


def _split_by_name(read: Reader) -> dict[str, Reader]:
    names = functools.cache(lambda: [document.name for document in read()])
    heldout = functools.cache(lambda: _heldout(names()))

    def part(wanted: bool) -> Iterator[Document]:
        if len(names()) == 1:
            yield from (_last_tenth(document, wanted) for document in read())
        else:
            yield from (document for document in read() if (document.name in heldout()) == wanted)

    return {"train": functools.partial(part, False), "heldout": functools.partial(part, True)}


def _heldout(names: list[str]) -> frozenset[str]:
    rank = {name: int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "big") for name in names}
    chosen = {name for name in names if rank[name] % HELDOUT_ONE_IN == 0}
    if not chosen and names:
        chosen = {min(names, key=rank.get)}
    elif len(chosen) == len(names):
        chosen -= {max(names, key=rank.get)}
    return frozenset(chosen)


def _last_tenth(document: Document, wanted: bool) -> Document:
    text, tokens = document.text, document.tokens
    nine_tenths = len(text) * 9 // 10
    cut = text.rfind("\n", len(text) // 2, nine_tenths) + 1 or nine_tenths
    text = text[cut:] if wanted else text[:cut]
    if tokens is not None:
        if document.text:
            raise ValueError(
                f"The single document {document.name} holds text and tokens: it cannot be cut in two."
            )
        tokens = tokens[len(tokens) * 9 // 10 :] if wanted else tokens[: len(tokens) * 9 // 10]
    return replace(document, text=text, tokens=tokens)


def _heads(read: Reader, size: int) -> Iterator[Document]:
    for document in read():
        if document.tokens is not None:
            raise ValueError(f"{document.name} is already tokenized: max_bytes_per_document is for text.")
        yield replace(document, text=document.text.encode()[:size].decode(errors="ignore"))
