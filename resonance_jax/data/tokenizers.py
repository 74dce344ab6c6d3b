"""Tokenizers with one interface: bytes (built in), tokenizer.json, and sentencepiece's tokenizer.model.

None of them adds a special token, and text that spells one ("<s>") stays text: BOS and EOS are put where a
protocol wants them, by their ids (data/ids.py).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from resonance_jax.data import chat
from resonance_jax.data.special_tokens import special_id
from resonance_jax.files import found_at, half_surrogate


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        name: of the file, for people.
        fingerprint: differs between tokenizers that make different ids, BOS and EOS included.
        vocab_size: counts every id, added ones too. It may be larger than a model's embedding, so check the
            ids that occur (`check_ids`).
        bos_id: what this tokenizer puts in front of a text, which belongs in front of every window; None
            where it puts nothing there.
        eos_id: ends a document; None where there is none.
        eos_ids: any of them ends an answer; eos_id, if there is one, comes first.
        pad_id: eos_id where the files state no other.
        chat_template: in Jinja's language, or None.
        special_tokens: the text of each by name ("bos_token" …).
    """

    name: str
    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = {}

    @abstractmethod
    def encode(self, text: str, parse_special: bool = False) -> Int32[np.ndarray, "T"]:
        """The ids of a text, without BOS and EOS.

        Args:
            text: any string.
            parse_special: a special token that the text spells becomes that token, as the text of a chat
                template means it; otherwise it stays text.

        Raises:
            ValueError: the vocabulary cannot express the text.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int | np.integer] | Int[np.ndarray, "T"]) -> str:
        """The text of the ids; special tokens, and ids that are no token, leave no trace."""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; encode it with `parse_special=True`, and add BOS by `with_bos`.

        Args:
            messages: {"role": "system" | "user" | "assistant" ..., "content": text} each.
            add_generation_prompt: end with what opens the assistant's answer.

        Raises:
            ValueError: there is no chat template, jinja2 is missing, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError(f"The tokenizer {self.name} has no chat template: give plain prompts.")
        return chat.render(
            self.chat_template, messages, add_generation_prompt, self.special_tokens, self.name
        )


def tokenizer(name_or_path: str | Path, *, bos: str | int = "auto", eos: str | int = "auto") -> Tokenizer:
    """The tokenizer "bytes", or the one of a tokenizer.json, a tokenizer.model or a directory with one.

    Args:
        name_or_path: in a directory, tokenizer.json goes before tokenizer.model.
        bos: "auto": what this tokenizer really puts in front, as transformers reads its files (of a
            tokenizer.json what its post-processor adds; of a tokenizer.model BOS if add_bos_token is true, or
            if there is no tokenizer_config.json). "none": nothing. Or a token by its text or id.
        eos: "auto": the tokenizer's own, and for answers also those of generation_config.json or
            config.json. "none", or a token by its text or id, which is then the only one.

    Raises:
        ValueError: there is no such file, or it or a file beside it cannot be read, or has no such token.
    """
    if str(name_or_path) == "bytes":
        return Bytes(bos, eos)
    path = Path(name_or_path)
    if str(name_or_path) and found_at(path) == "a folder":
        found = [path / file for file in ("tokenizer.json", "tokenizer.model") if (path / file).is_file()]
        if not found:
            raise ValueError(f"The directory {path} holds no tokenizer.json and no tokenizer.model.")
        path = found[0]
    if found_at(path) != "a file":
        raise ValueError(
            f"There is no tokenizer {str(name_or_path)!r}: expected 'bytes', a tokenizer.json, "
            "a tokenizer.model or a directory with one of them."
        )
    if path.suffix == ".model":
        from resonance_jax.data.sentencepiece_model import SentencePiece

        return SentencePiece(path, bos, eos)
    from resonance_jax.data.tokenizer_json import TokenizerJson

    return TokenizerJson(path, bos, eos)


class Bytes(Tokenizer):
    """UTF-8 bytes as tokens: 0 ... 255 the bytes, 256 BOS, 257 EOS (also the padding)."""

    name, vocab_size, pad_id = "bytes", 258, 257

    def __init__(self, bos: str | int = "auto", eos: str | int = "auto") -> None:
        """The arguments are those of `tokenizer`; the two special tokens have ids only, no text."""
        no_text = lambda text: None
        self.bos_id = 256 if bos == "auto" else special_id(bos, "bos", no_text, self.vocab_size, "bytes")
        self.eos_id = 257 if eos == "auto" else special_id(eos, "eos", no_text, self.vocab_size, "bytes")
        self.eos_ids = () if self.eos_id is None else (self.eos_id,)
        self.fingerprint = hashlib.sha1(f"bytes {self.bos_id} {self.eos_id}".encode()).hexdigest()

    def encode(self, text: str, parse_special: bool = False) -> Int32[np.ndarray, "T"]:
        """As `Tokenizer.encode`; no text spells BOS or EOS. ValueError if half a surrogate pair is in it."""
        if (at := half_surrogate(text)) is not None:
            raise ValueError(f"The text holds half a surrogate pair at character {at}, which has no bytes.")
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int | np.integer] | Int[np.ndarray, "T"]) -> str:
        """The text; ids that are no byte are dropped, bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        return ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def fingerprint_of(path: Path, *facts: object) -> str:
    """SHA-1 (hex) of a tokenizer's file and of whatever else decides the ids that it makes.

    Args:
        path: the file.
        facts: BOS, EOS, added tokens …, each with a repr that tells it from others.
    """
    return hashlib.sha1(path.read_bytes() + repr(facts).encode()).hexdigest()
