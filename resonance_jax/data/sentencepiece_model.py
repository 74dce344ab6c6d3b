"""A sentencepiece tokenizer.model (LLaMA 1 and 2, Mistral), with the tokens that were added to it later."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32

from resonance_jax.data.chat import chat_template_in
from resonance_jax.data.special_tokens import Added, Beside, end_ids, special_id
from resonance_jax.data.tokenizers import Tokenizer, fingerprint_of
from resonance_jax.files import half_surrogate

if TYPE_CHECKING:
    import sentencepiece

# normalizer_spec.add_dummy_prefix = false, to be appended to a serialized model: fields of a message that
# come twice are merged, and the last value counts.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePiece(Tokenizer):
    """A tokenizer.model, which states its own BOS, EOS and padding, and the added tokens beside it.

    An added token in a text is found before the model sees the rest. What follows one begins without the
    model's own blank in front, unless tokenizer_config.json says `legacy` (as transformers reads it).
    """

    def __init__(self, path: Path, bos: str | int, eos: str | int) -> None:
        """The arguments and errors are those of `tokenizer`."""
        content, beside = path.read_bytes(), Beside.read(path.parent)
        self.name = f"{path.resolve().parent.name}/{path.name}"
        pieces = self._processor = _processor(path, content)
        self._within = _processor(path, content + NO_DUMMY_PREFIX)
        self._pieces = pieces.vocab_size()
        self._added = {
            id: token for id, token in beside.added().items() if not self._is_control(id, token.text)
        }
        self._legacy = _legacy(beside)
        self._patterns = {parse_special: self._pattern(parse_special) for parse_special in (False, True)}
        self.vocab_size = max(self._pieces, 1 + max(self._added, default=-1))
        self.bos_id = (
            self._own_bos(beside)
            if bos == "auto"
            else special_id(bos, "bos", self._id_of, self.vocab_size, str(path))
        )
        own = self._named("eos", pieces.eos_id(), beside)
        self.eos_id, self.eos_ids = end_ids(eos, own, beside, self._id_of, self.vocab_size, str(path))
        pads = [self._named("pad", pieces.pad_id(), beside), *beside.ids("pad", self.vocab_size)]
        self.pad_id = next((id for id in pads if id is not None), self.eos_id)
        self.chat_template = chat_template_in(path.parent, beside.tokenizer_config)
        own_tokens = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id()}
        stated = {name: pieces.id_to_piece(id) for name, id in own_tokens.items() if id >= 0}
        self.special_tokens = {**stated, **beside.tokens()}
        self.fingerprint = fingerprint_of(
            path, self.bos_id, self.eos_ids, list(self._added.items()), self._legacy
        )

    def _is_control(self, id: int, text: str) -> bool:
        """Whether the model itself has the token and knows that no text makes it."""
        pieces = self._processor
        known = id < self._pieces and pieces.id_to_piece(id) == text
        return known and (pieces.is_control(id) or pieces.is_unknown(id))

    def _id_of(self, text: str) -> int | None:
        for id, token in self._added.items():
            if token.text == text:
                return id
        id = self._processor.piece_to_id(text)
        return id if self._processor.id_to_piece(id) == text else None

    def _named(self, kind: str, own: int, beside: Beside) -> int | None:
        """The id of the special token that the files beside the model name, or that it states itself."""
        if beside.denies(kind):
            return None
        text = beside.token(kind)
        named = None if text is None else self._id_of(text)
        return own if named is None and own >= 0 else named

    def _own_bos(self, beside: Beside) -> int | None:
        wanted = beside.tokenizer_config.get("add_bos_token") is True or not beside.is_huggingface
        return self._named("bos", self._processor.bos_id(), beside) if wanted else None

    def encode(self, text: str, parse_special: bool = False) -> Int32[np.ndarray, "T"]:
        """As `Tokenizer.encode`."""
        ids: list[int] = []
        end = 0
        pattern, of_group = self._patterns[parse_special]
        for found in pattern.finditer(text) if of_group else ():
            ids += [*self._encode(text[end : found.start()], end), of_group[(found.lastindex or 0) - 1]]
            end = found.end()
        return np.array([*ids, *self._encode(text[end:], end)], np.int32)

    def _encode(self, text: str, offset: int) -> list[int]:
        goes_on = offset and (not self._legacy or text.startswith((" ", "▁")))
        if (at := half_surrogate(text)) is not None:
            raise ValueError(f"The text holds half a surrogate pair at character {offset + at}.")
        return (self._within if goes_on else self._processor).encode(text, out_type=int)

    def _pattern(self, parse_special: bool) -> tuple[re.Pattern[str], list[int]]:
        """Finds the tokens that count as such in a text, the longest first; the id of each of its groups."""
        wanted = {id: token for id, token in self._added.items() if parse_special or not token.special}
        if parse_special:
            control = filter(self._processor.is_control, range(self._pieces))
            wanted |= {id: Added(self._processor.id_to_piece(id), special=True) for id in control}
        longest_first = sorted(wanted, key=lambda id: -len(wanted[id].text))
        blank = lambda strip: r"\s*" if strip else ""
        parts = [
            f"({blank(wanted[id].lstrip)}{re.escape(wanted[id].text)}{blank(wanted[id].rstrip)})"
            for id in longest_first
        ]
        return re.compile("|".join(parts)), longest_first

    def decode(self, ids: Sequence[int | np.integer] | Int[np.ndarray, "T"]) -> str:
        """As `Tokenizer.decode`."""
        known = [
            id for id in np.asarray(ids, np.int64).tolist() if 0 <= id < self._pieces or id in self._added
        ]
        if not self._added:
            return self._processor.decode(known)
        parts = []
        for added, run in groupby(known, self._added.get):
            if added is None:
                parts.append(self._within.decode(list(run)))
            elif not added.special:
                parts += [added.text for _ in run]
        text = "".join(parts)
        begins = bool(parts) and self._processor.encode("a", out_type=str)[0].startswith("▁")
        return text.removeprefix(" ") if begins else text


def _processor(path: Path, content: bytes) -> "sentencepiece.SentencePieceProcessor":
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(f"Reading {path} needs sentencepiece: pip install sentencepiece.") from None
    try:
        made = sentencepiece.SentencePieceProcessor(model_proto=content)
        if made.vocab_size():
            return made
    except (RuntimeError, OSError):
        pass
    raise ValueError(
        f"{path} is not a sentencepiece model (Llama 3's tokenizer.model is a tiktoken file: use its "
        "tokenizer.json)."
    )


def _legacy(beside: Beside) -> bool:
    stated = beside.tokenizer_config.get("legacy")
    if stated is None:
        return not str(beside.tokenizer_config.get("tokenizer_class")).startswith("LlamaTokenizer")
    return bool(stated)
