"""Tokenizers behind one face: bytes (embedded), tokenizer.json, and sentencepiece's tokenizer.model.

None of them adds a special token, and text that spells one ("<s>") stays text: BOS and EOS are put where a
protocol wants them, by their ids.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

WELL_KNOWN = {"bos": ("<s>", "<|begin_of_text|>"), "eos": ("</s>", "<|end_of_text|>")}


class Tokenizer(ABC):
    """Text to token ids and back.

    vocab_size counts every id, special ones included; bos_id and eos_id are None where there is none; pad_id
    is eos_id where the file states no other. fingerprint tells two tokenizers (or their BOS and EOS) apart.
    """

    name: str
    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int32 [T], without special tokens."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special tokens leave no trace."""


def tokenizer(
    name_or_path: str | Path, *, bos: str | int | None = None, eos: str | int | None = None
) -> Tokenizer:
    """The tokenizer "bytes", or the one of a tokenizer.json, a tokenizer.model or a directory with one.

    bos, eos: the special tokens, by name or id, where the files beside it do not say (tokenizer_config.json,
    special_tokens_map.json, config.json, in this order) and they have no well-known name.

    Raises ValueError, in one sentence, if there is no such file or it cannot be read.
    """
    if str(name_or_path) == "bytes":
        if bos is not None or eos is not None:
            raise ValueError(
                "The tokenizer 'bytes' has its own BOS (256) and EOS (257): leave bos and eos out."
            )
        return Bytes()
    path = Path(name_or_path)
    if path.is_dir():
        found = [path / file for file in ("tokenizer.json", "tokenizer.model") if (path / file).is_file()]
        if not found:
            raise ValueError(f"The directory {path} holds no tokenizer.json and no tokenizer.model.")
        path = found[0]
    if not path.is_file():
        raise ValueError(
            f"There is no tokenizer {str(name_or_path)!r}: expected 'bytes', a tokenizer.json, "
            "a tokenizer.model or a directory with one of them."
        )
    return SentencePiece(path, bos, eos) if path.suffix == ".model" else TokenizerJson(path, bos, eos)


class Bytes(Tokenizer):
    """UTF-8 bytes as tokens: 0 ... 255 the bytes, 256 BOS, 257 EOS (also the padding)."""

    name, vocab_size, bos_id, eos_id, pad_id = "bytes", 258, 256, 257, 257
    fingerprint = hashlib.sha1(b"bytes 256 257").hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text; ids that are no byte are dropped, bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class TokenizerJson(Tokenizer):
    """A Hugging Face tokenizer.json, by the `tokenizers` library; its post-processor is not run."""

    def __init__(self, path: Path, bos: str | int | None, eos: str | int | None):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer.json that `tokenizers` reads: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.name = f"{path.resolve().parent.name}/{path.name}"
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos_id, self.eos_id = (
            _special_id(kind, given, path, self._tokenizer.token_to_id, self.vocab_size)
            for kind, given in (("bos", bos), ("eos", eos))
        )
        stated = next(_stated("pad", path.parent, self._tokenizer.token_to_id, self.vocab_size), None)
        self.pad_id = self.eos_id if stated is None else stated
        self.fingerprint = _fingerprint(path, self.bos_id, self.eos_id)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)


class SentencePiece(Tokenizer):
    """A sentencepiece tokenizer.model (LLaMA 1 and 2, Mistral), which states its own BOS, EOS and padding."""

    def __init__(self, path: Path, bos: str | int | None, eos: str | int | None):
        try:
            import sentencepiece
        except ImportError:
            raise ValueError(f"Reading {path} needs sentencepiece: pip install sentencepiece.") from None
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise ValueError(
                f"{path} is not a sentencepiece model (Llama 3's tokenizer.model is a tiktoken file: "
                "use its tokenizer.json)."
            ) from None
        pieces = self._processor
        self.name = f"{path.resolve().parent.name}/{path.name}"
        self.vocab_size = pieces.vocab_size()

        def id_of(piece: str) -> int | None:
            id = pieces.piece_to_id(piece)
            return None if id == pieces.unk_id() and piece != pieces.id_to_piece(id) else id

        given = {"bos": bos, "eos": eos}
        stated = {"bos": pieces.bos_id(), "eos": pieces.eos_id()}
        self.bos_id, self.eos_id = (
            stated[kind]
            if given[kind] is None and stated[kind] >= 0
            else _special_id(kind, given[kind], path, id_of, self.vocab_size)
            for kind in ("bos", "eos")
        )
        self.pad_id = pieces.pad_id() if pieces.pad_id() >= 0 else self.eos_id
        self.fingerprint = _fingerprint(path, self.bos_id, self.eos_id)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(text, out_type=int), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode(np.asarray(ids).tolist())


def _special_id(kind: str, given: str | int | None, path: Path, id_of, vocab_size: int) -> int | None:
    """The id that was given, or that the files beside `path` state, or the well-known token's, or None."""
    if isinstance(given, str):
        id = id_of(given)
        if id is None:
            raise ValueError(f"{path} has no token {given!r}, given as {kind}.")
        return id
    if given is not None:
        if not 0 <= given < vocab_size:
            raise ValueError(f"The {kind} id must be in 0 ... {vocab_size - 1}, not {given}.")
        return given
    stated = _stated(kind, path.parent, id_of, vocab_size)
    known = (id for token in WELL_KNOWN[kind] if (id := id_of(token)) is not None)
    return next(stated, next(known, None))


def _stated(kind: str, folder: Path, id_of, vocab_size: int) -> Iterator[int]:
    """The ids that the files beside a tokenizer state for a special token, in order of precedence."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _json(folder / file).get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (id := id_of(token)) is not None:
            yield id
    ids = _json(folder / "config.json").get(f"{kind}_token_id")
    for id in ids if isinstance(ids, list) else [ids]:
        if isinstance(id, int) and 0 <= id < vocab_size:
            yield id


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None


def _fingerprint(path: Path, bos_id: int | None, eos_id: int | None) -> str:
    return hashlib.sha1(path.read_bytes() + f"{bos_id} {eos_id}".encode()).hexdigest()
