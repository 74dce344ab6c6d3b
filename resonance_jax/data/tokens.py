"""A memory-mapped file of tokens: the documents of a corpus, tokenized once into one flat array on disk.

Its header carries a checksum over both, which every opening verifies: a byte that changed on the disk is
found, never trained on.
"""

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
from jaxtyping import Int, Int32, Int64

from resonance_jax import digest
from resonance_jax.data.corpora import Corpus
from resonance_jax.data.documents import LeftOut
from resonance_jax.data.ids import check_ids, document_ids, with_bos
from resonance_jax.data.tokenizers import Tokenizer
from resonance_jax.files import found_at, move, read_json, reason, remove_leftovers, scratch_file, write_json

RULES = {"bos_eos": (True, True), "bos": (True, False), "eos": (False, True), "none": (False, False)}
"""rule -> whether BOS stands before each document, and EOS after it."""
FORMAT = 2
NPY_HEADER_BYTES = 128
REASONS_KEPT = 20
REMEDY = "delete the .npy and the .json of that name to have them made anew"


class Source(TypedDict):
    """What a token file was made from: a name for people and the digest that tells it from others."""

    name: str
    fingerprint: str


class Header(TypedDict):
    """The facts of a token file.

    Attributes:
        format: the version of the format.
        corpus, tokenizer: what it was made from; no tokenizer where the corpus came tokenized.
        rule: one of RULES.
        vocab_size: of the tokenizer; None where it is not known.
        dtype: of the tokens on the disk.
        largest: the largest id that occurs, and the name of a document that has it.
        left_out: how many documents had no text.
        reasons: the first sentences that say why.
        offsets: where each document begins, and where the last one ends.
    """

    format: int
    corpus: Source
    tokenizer: Source | None
    rule: str
    vocab_size: int | None
    dtype: str
    largest: tuple[int, str]
    left_out: int
    reasons: list[str]
    offsets: list[int]


class TokenFile:
    """A token file, opened memory-mapped: `PATH.npy` (uint16 or int32, flat) beside its header `PATH.json`.

    Attributes:
        path: of the .npy file.
        header: its facts.
        tokens: [total], those of all documents, one after another.
        offsets: [documents + 1], where each begins, and the end.
    """

    path: Path
    header: Header
    tokens: Int[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "documents+1"]

    def __init__(self, path: str | Path, written_now: bool = False) -> None:
        """
        Args:
            path: of either file, or without suffix.
            written_now: this process has just written both files, so that they need not be verified.

        Raises:
            ValueError: a file is missing, or the two are not, to the last bit, what was written together.
        """
        self.path = Path(path).with_suffix(".npy")
        for file in (self.path, self.path.with_suffix(".json")):
            if (found := found_at(file)) != "a file":
                raise ValueError(f"There is no token file {self.path}: {file} is {found}.")
        stored = read_json(self.path.with_suffix(".json"), dict, REMEDY)
        if stored.get("format") != FORMAT:
            raise ValueError(f"The token file {self.path} is of another version of this program: {REMEDY}.")
        stated = stored.pop("checksum", None)
        if not written_now and stated != _checksum(self.path, stored):
            raise ValueError(
                f"The token file {self.path} is damaged, or its two files do not match: {REMEDY}."
            )
        self.header = cast(Header, stored)
        self.offsets = np.array(self.header["offsets"], np.int64)
        dtype, total = np.dtype(self.header["dtype"]), self.header["offsets"][-1]
        empty = np.empty(0, dtype)  # which cannot be mapped
        self.tokens = np.memmap(self.path, dtype, "r", NPY_HEADER_BYTES, (total,)) if total else empty

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over what the tokens were made from: the text, the tokenizer and the rule."""
        tokenizer = self.header["tokenizer"]
        made_from = (self.header["corpus"]["fingerprint"], tokenizer and tokenizer["fingerprint"])
        return digest.of_json([*made_from, self.header["rule"]])

    def document(self, index: int) -> Int32[np.ndarray, "T"]:
        """The tokens of one document, with the BOS and EOS of the rule."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)

    def check_ids(self, vocab_size: int, vocabulary: str = "the model") -> None:
        """Refuse tokens that a model's embedding does not have, which it would silently read as others.

        Args:
            vocab_size: rows of the embedding.
            vocabulary: names it in the error sentence.

        Raises:
            ValueError: names the document, the id and the vocabulary.
        """
        id, document = self.header["largest"]
        check_ids(np.asarray([id]), vocab_size, f"The document {document}", vocabulary)


def token_file(
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    cache_dir: str | Path,
    rule: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> TokenFile:
    """The token file of a corpus in `cache_dir`; it is built first where it is missing or damaged.

    A file is found by the fingerprints of corpus and tokenizer and by the rule; a damaged one is built anew
    with a warning. The corpus is read once: for its fingerprint where there may be a file of it, otherwise
    while its tokens are written. The file gets its name when it is whole.

    Args:
        corpus: its documents, in order.
        tokenizer: encodes every document that has a text; one that has only ids is taken as it is. None takes
            the documents' own ids, and the rule must be "none" (or "auto").
        cache_dir: a folder for token files; what killed builds left in it is removed.
        rule: what stands around each document: "bos_eos", "bos", "eos", "none", or "auto": the BOS that the
            tokenizer puts in front, if any, and its EOS, if it has one. Ids that begin with BOS or end with
            EOS get no second one.
        progress: called with (documents, tokens) done, after each document, while building.

    Raises:
        ValueError: the rule needs a token that the tokenizer lacks, an id is outside the vocabulary, the
            corpus cannot be read, or the disk is full.
    """
    rule = resolved_rule(rule, tokenizer)
    folder = Path(cache_dir)
    identity = json.dumps([FORMAT, tokenizer and tokenizer.fingerprint, rule])
    name = re.sub(r"[^A-Za-z0-9.]+", "-", corpus.name)[:100]
    stem = f"{name}-{hashlib.sha1(identity.encode()).hexdigest()[:8]}"
    may_be_there = corpus.was_read or any(folder.glob(f"{stem}-*.json"))
    if may_be_there and (cached := _cached(folder, stem, corpus, tokenizer, rule)) is not None:
        return cached
    try:
        return _build(folder, stem, corpus, tokenizer, rule, progress)
    except OSError as error:
        raise ValueError(f"The token file {folder / stem} cannot be written: {reason(error)}.") from error


def _cached(
    folder: Path, stem: str, corpus: Corpus, tokenizer: Tokenizer | None, rule: str
) -> TokenFile | None:
    path = _path(folder, stem, corpus)
    if not path.exists() or not path.with_suffix(".json").exists():
        return None  # never built, or killed between the two files
    made_from = (corpus.fingerprint, tokenizer and tokenizer.fingerprint, rule)
    try:
        found = TokenFile(path)
        theirs = found.header["tokenizer"]
        if (
            found.header["corpus"]["fingerprint"],
            theirs and theirs["fingerprint"],
            found.header["rule"],
        ) != made_from:
            raise ValueError(f"The token file {path} was made from other text, or in another way.")
        return found
    except ValueError as error:
        warnings.warn(f"{error} It is built anew.")
        return None


def _path(folder: Path, stem: str, corpus: Corpus) -> Path:
    return folder / f"{stem}-{corpus.fingerprint[:16]}.npy"


def _build(
    folder: Path,
    stem: str,
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    rule: str,
    progress: Callable[[int, int], None] | None,
) -> TokenFile:
    for pattern in (".*.tmp.npy", f".*.npy.{'[0-9a-f]' * 32}"):
        remove_leftovers(folder, pattern)
    dtype = np.dtype(np.uint16 if tokenizer and tokenizer.vocab_size <= 1 << 16 else np.int32)
    left_out: list[LeftOut] = []
    offsets, largest, sums = [0], (-1, ""), hashlib.sha256()
    with scratch_file(folder, f"{stem}.npy") as temporary:
        with temporary.open("r+b") as file:
            file.write(_npy_header(dtype, 0))
            for document in corpus.documents(left_out.append):
                ids = _framed(document_ids(document, tokenizer), tokenizer, rule)
                if len(ids) and ids.max() > largest[0]:
                    largest = (int(ids.max()), document.name)
                content = ids.astype(dtype).tobytes()
                sums.update(content)
                file.write(content)
                offsets.append(offsets[-1] + len(ids))
                if progress:
                    progress(len(offsets) - 1, offsets[-1])
            file.seek(0)
            file.write(_npy_header(dtype, offsets[-1]))
        header: Header = {
            "format": FORMAT,
            "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
            "tokenizer": tokenizer and {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
            "rule": rule,
            "vocab_size": tokenizer and tokenizer.vocab_size,
            "dtype": dtype.name,
            "largest": largest,
            "left_out": len(left_out),
            "reasons": [each.reason for each in left_out[:REASONS_KEPT]],
            "offsets": offsets,
        }
        path = _path(folder, stem, corpus)
        move(temporary, path)
    checksum = _sealed(sums, _npy_header(dtype, offsets[-1]), header)
    write_json(path.with_suffix(".json"), {**header, "checksum": checksum})
    return TokenFile(path, written_now=True)


def _npy_header(dtype: np.dtype, total: int) -> bytes:
    """The first bytes of the .npy file; NumPy pads them, so that their number does not depend on `total`."""
    stream = io.BytesIO()
    facts = {"descr": dtype.str, "fortran_order": False, "shape": (total,)}
    np.lib.format.write_array_header_1_0(stream, facts)
    assert stream.tell() == NPY_HEADER_BYTES
    return stream.getvalue()


def _checksum(path: Path, header: Mapping[str, object]) -> str:
    """The checksum that the header of the .npy file at `path` must have. ValueError if it cannot be read."""
    sums = hashlib.sha256()
    try:
        with path.open("rb") as file:
            first = file.read(NPY_HEADER_BYTES)
            while content := file.read(1 << 24):
                sums.update(content)
    except OSError as error:
        raise ValueError(f"The token file {path} cannot be read: {reason(error)}.") from None
    return _sealed(sums, first, header)


def _sealed(tokens: "hashlib._Hash", npy_header: bytes, header: Mapping[str, object]) -> str:
    """SHA-256 (hex) of the tokens, of which `tokens` is the sum so far, the .npy header and the facts."""
    tokens.update(npy_header)
    tokens.update(json.dumps(header, sort_keys=True).encode())
    return tokens.hexdigest()


def resolved_rule(rule: str, tokenizer: Tokenizer | None) -> str:
    """One of RULES: "auto" decided, a rule that the tokenizer cannot follow refused."""
    if rule != "auto" and rule not in RULES:
        raise ValueError(f"There is no rule {rule!r}; known are auto, {', '.join(RULES)}.")
    if tokenizer is None:
        if rule in ("auto", "none"):
            return "none"
        raise ValueError(f"The rule {rule!r} needs a tokenizer: without one, the rule must be 'none'.")
    has = (tokenizer.bos_id is not None, tokenizer.eos_id is not None)
    if rule == "auto":
        return next(name for name, wants in RULES.items() if wants == has)
    for wanted, there, kind in zip(RULES[rule], has, ("bos", "eos"), strict=True):
        if wanted and not there:
            verb = "put in front" if kind == "bos" else "have"
            raise ValueError(
                f"The rule {rule!r} needs {kind.upper()}, which the tokenizer {tokenizer.name} does not "
                f"{verb}: name it ({kind}=...), or choose the rule 'auto'."
            )
    return rule


def _framed(ids: Int32[np.ndarray, "T"], tokenizer: Tokenizer | None, rule: str) -> Int32[np.ndarray, "U"]:
    """The ids of a document with the BOS and EOS of the rule, each once."""
    before, after = RULES[rule]
    if tokenizer is None:
        return ids
    if before:
        ids = with_bos(ids, tokenizer.bos_id)
    if after and not (len(ids) and ids[-1] == tokenizer.eos_id):
        ids = np.append(ids, np.int32(cast(int, tokenizer.eos_id)))
    return ids
