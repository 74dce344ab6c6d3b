"""A memory-mapped file of tokens, and batches whose order depends on nothing but (seed, step).

The documents of a corpus are tokenized once into one flat array on disk. Chunk i is a slice of it; the order
of epoch e is a permutation made from (seed, e); so the state of a data pipeline is one integer, the step, and
any process can read any rows of any batch.
"""

import functools
import hashlib
import json
import math
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resonance_jax.data.corpora import Corpus
from resonance_jax.data.files import Document
from resonance_jax.data.tokenizers import Tokenizer

# rule: (BOS before, EOS after) each document
RULES = {"bos_eos": (True, True), "bos": (True, False), "eos": (False, True), "none": (False, False)}
FORMAT = 1


class TokenFile:
    """A token file, opened memory-mapped: `PATH.npy` (uint16 or int32, flat) beside its header `PATH.json`.

    tokens: [total] of all documents, concatenated; offsets: int64 [documents + 1], where each begins;
    header: corpus and tokenizer (name and fingerprint), rule, vocab_size (None: not known).

    Raises ValueError if a file is missing or the two do not belong together.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).with_suffix(".npy")
        try:
            self.header = json.loads(self.path.with_suffix(".json").read_text())
            self.offsets = np.array(self.header.pop("offsets"), np.int64)
            self.tokens = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise ValueError(f"There is no token file {self.path}: {error.filename} is missing.") from None
        except (ValueError, KeyError) as error:
            raise ValueError(f"The token file {self.path} cannot be read ({error}): delete it.") from error
        if self.header["format"] != FORMAT or self.tokens.shape != (self.offsets[-1],):
            raise ValueError(f"The token file {self.path} does not match its header: delete both.")

    def __len__(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """int32 [T]: the tokens of one document, with the BOS and EOS of the rule."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)


def token_file(
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    cache_dir: str | Path,
    rule: str = "bos_eos",
    progress: Callable[[int, int], None] | None = None,
) -> TokenFile:
    """The token file of a corpus, from `cache_dir`, built there first if it is not there yet.

    tokenizer: encodes every document that has a text; one that has only tokens is taken as it is. None takes
    the documents' own tokens, with rule "none" (chunks that already hold their BOS and EOS).
    rule: what stands around each document: "bos_eos", "bos", "eos" or "none".
    progress: called with (documents, tokens) done, after each document, while building.

    A file is found by the fingerprints of corpus and tokenizer and by the rule. It is written under a
    temporary name, so an interrupted build leaves nothing that could be taken for a whole file.

    Raises ValueError if the rule needs a token that the tokenizer lacks, if a token is outside the vocabulary
    or if the disk is full.
    """
    before, after = _special_tokens(tokenizer, rule)
    header = {
        "format": FORMAT,
        "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "tokenizer": tokenizer and {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
        "rule": rule,
        "vocab_size": tokenizer and tokenizer.vocab_size,
    }
    identity = [FORMAT, corpus.fingerprint, tokenizer and tokenizer.fingerprint, rule]
    key = hashlib.sha1(json.dumps(identity).encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"{re.sub(r'[^A-Za-z0-9.]+', '-', corpus.name)}-{key}.npy"
    if path.exists() and path.with_suffix(".json").exists():
        return TokenFile(path)

    dtype = np.uint16 if tokenizer and tokenizer.vocab_size <= 1 << 16 else np.int32
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            offsets = [0]
            _write_header(file, dtype, 0)
            for document in corpus:
                tokens = np.concatenate([before, _encode(document, tokenizer), after])
                file.write(tokens.astype(dtype).tobytes())
                offsets.append(offsets[-1] + len(tokens))
                if progress:
                    progress(len(offsets) - 1, offsets[-1])
            file.seek(0)
            _write_header(file, dtype, offsets[-1])
        temporary.rename(path)
        temporary.write_text(json.dumps({**header, "offsets": offsets}))
        temporary.rename(path.with_suffix(".json"))
    except OSError as error:
        raise ValueError(f"The token file {path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return TokenFile(path)


def _special_tokens(tokenizer: Tokenizer | None, rule: str) -> tuple[np.ndarray, np.ndarray]:
    if rule not in RULES:
        raise ValueError(f"There is no rule {rule!r}; known are {', '.join(RULES)}.")
    if tokenizer is None and rule != "none":
        raise ValueError(f"The rule {rule!r} needs a tokenizer: without one, the rule must be 'none'.")
    parts = []
    for wanted, kind in zip(RULES[rule], ("bos", "eos"), strict=True):
        id = getattr(tokenizer, f"{kind}_id") if wanted else None
        if wanted and id is None:
            raise ValueError(
                f"The rule {rule!r} needs {kind.upper()}, which the tokenizer {tokenizer.name} does not "
                f"have: name it ({kind}=...) or choose another rule."
            )
        parts.append(np.array([] if id is None else [id], np.int32))
    return parts[0], parts[1]


def _encode(document: Document, tokenizer: Tokenizer | None) -> np.ndarray:
    if tokenizer is not None and (document.text or document.tokens is None):
        return tokenizer.encode(document.text)
    if document.tokens is None:
        raise ValueError(f"The document {document.name} is text: a tokenizer is needed.")
    tokens = document.tokens
    if tokenizer is not None and tokens.size and tokens.max() >= tokenizer.vocab_size:
        raise ValueError(
            f"The document {document.name} holds token {tokens.max()}, outside the vocabulary of "
            f"{tokenizer.name} ({tokenizer.vocab_size}): it was tokenized by another tokenizer."
        )
    return tokens


def _write_header(file, dtype: type, total: int) -> None:
    # NumPy leaves room in a header for the first axis to grow: its length does not depend on `total`.
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (total,)}
    np.lib.format.write_array_header_1_0(file, header)


class Batches:
    """Batches of equal chunks of a token file: `batches[step]` is int32 [B, T], a pure function of the step.

    Step s holds the chunks s·B ... s·B + B - 1 of the endless sequence epoch 0, epoch 1, ..., each epoch
    being every chunk once in an order made from (seed, epoch). So a run resumes at any step, on any number
    of processes: each reads its own `rows`.

    length: T, tokens in a chunk. batch_size: B, over all processes.
    mode: "split" cuts the tokens into chunks of T (the tail is left out); "truncate" takes the first T tokens
    of every `source_chunk` tokens and leaves the rest, as the published fine-tuning does.

    Raises ValueError if there are too few tokens for one chunk.
    """

    def __init__(
        self,
        token_file: TokenFile,
        length: int,
        batch_size: int,
        seed: int,
        mode: str = "split",
        source_chunk: int = 65_536,
    ):
        if mode not in ("split", "truncate"):
            raise ValueError(f"The mode of batches is 'split' or 'truncate', not {mode!r}.")
        if length < 1 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"Batches need length and batch_size >= 1 and seed >= 0, not {length}, {batch_size}, {seed}."
            )
        stride = length if mode == "split" else source_chunk
        if length > stride:
            raise ValueError(
                f"Truncation to {length} tokens needs source chunks at least as long, not {stride}."
            )
        self.tokens, self.length, self.batch_size = token_file.tokens, length, batch_size
        self.chunks = len(token_file) // stride
        if not self.chunks:
            raise ValueError(
                f"{token_file.header['corpus']['name']} has {len(token_file)} tokens, fewer than one chunk "
                f"of {stride}: use a shorter length or more text."
            )
        self._seed, self._stride = seed, stride
        self._order = functools.lru_cache(maxsize=2)(self.order)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every chunk was seen: ceil(chunks / batch_size)."""
        return math.ceil(self.chunks / self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """int64 [chunks]: the order of one epoch, made from raw 64-bit words: the same in every NumPy."""
        words = np.random.Philox(np.random.SeedSequence([self._seed, epoch])).random_raw(self.chunks)
        return np.argsort(words, kind="stable")

    def __getitem__(self, step: int) -> np.ndarray:
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> np.ndarray:
        """int32 [stop - start, T]: rows start ... stop - 1 of the batch of one step."""
        if step < 0 or not 0 <= start <= stop <= self.batch_size:
            raise ValueError(
                f"There are no rows {start} to {stop} of step {step} in batches of {self.batch_size}."
            )
        rows = np.empty((stop - start, self.length), np.int32)
        for row in range(start, stop):
            epoch, index = divmod(step * self.batch_size + row, self.chunks)
            begin = self._order(epoch)[index] * self._stride
            rows[row - start] = self.tokens[begin : begin + self.length]
        return rows
