"""Hugging Face's tokenizer.json, by the `tokenizers` library."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32

from resonance_jax.data.chat import chat_template_in
from resonance_jax.data.special_tokens import REMEDY, Beside, end_ids, special_id
from resonance_jax.data.tokenizers import Tokenizer, fingerprint_of
from resonance_jax.files import read_json, reason

if TYPE_CHECKING:
    import tokenizers

TOKENS_TRIED = 100
"""Tokens of the vocabulary to look for a text among that can be encoded."""


class TokenizerJson(Tokenizer):
    """A tokenizer.json. Its post-processor is asked what it puts in front of a text, but not run."""

    def __init__(self, path: Path, bos: str | int, eos: str | int) -> None:
        """The arguments and errors are those of `tokenizer`."""
        self.name = f"{path.resolve().parent.name}/{path.name}"
        beside = Beside.read(path.parent)
        made = _opened(path)
        self._tokenizer = made
        self._add_missing(beside)
        vocabulary = made.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError(f"{path} has no tokens at all.")
        self.vocab_size = 1 + max(vocabulary.values())
        where = str(path)
        self.bos_id = (
            _front(made, beside, where)
            if bos == "auto"
            else special_id(bos, "bos", made.token_to_id, self.vocab_size, where)
        )
        own = None if (text := beside.token("eos")) is None else made.token_to_id(text)
        self.eos_id, self.eos_ids = end_ids(eos, own, beside, made.token_to_id, self.vocab_size, where)
        pad = beside.token("pad")
        pads = [
            None if pad is None else made.token_to_id(pad),
            *beside.ids("pad", self.vocab_size),
            self.eos_id,
        ]
        self.pad_id = next((id for id in pads if id is not None), None)
        self.chat_template = chat_template_in(path.parent, beside.tokenizer_config)
        self.special_tokens = beside.tokens()
        added = sorted((id, str(token)) for id, token in made.get_added_tokens_decoder().items())
        self.fingerprint = fingerprint_of(path, self.bos_id, self.eos_ids, added)

    def _add_missing(self, beside: Beside) -> None:
        """Add the tokens that the files beside it list and tokenizer.json lacks, as transformers does."""
        import tokenizers

        known = self._tokenizer.get_vocab(with_added_tokens=True)
        for token in beside.added().values():
            if token.text not in known:
                flags = {"special": token.special, "lstrip": token.lstrip, "rstrip": token.rstrip}
                self._tokenizer.add_tokens([tokenizers.AddedToken(token.text, **flags)])

    def encode(self, text: str, parse_special: bool = False) -> Int32[np.ndarray, "T"]:
        """As `Tokenizer.encode`."""
        self._tokenizer.encode_special_tokens = not parse_special
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"The tokenizer {self.name} cannot encode the text: {reason(error)}.") from None

    def decode(self, ids: Sequence[int | np.integer] | Int[np.ndarray, "T"]) -> str:
        """As `Tokenizer.decode`."""
        wanted = [id for id in np.asarray(ids, np.int64).tolist() if 0 <= id < self.vocab_size]
        return self._tokenizer.decode(wanted, skip_special_tokens=True)


def _opened(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        read_json(path, dict, REMEDY)  # which says it better where the file is not even JSON
        raise ValueError(
            f"{path} is not a tokenizer.json that `tokenizers` reads: {reason(error)}."
        ) from None
    made.no_truncation()
    made.no_padding()
    return made


def _front(made: "tokenizers.Tokenizer", beside: Beside, where: str) -> int | None:
    """The id that the post-processor puts in front of a text, or None; it alone decides."""
    front = _in_front(made)
    if len(front) > 1:
        raise ValueError(
            f"{where} puts {len(front)} tokens in front of a text ({front}), which nothing here does: choose "
            "one, or 'none', for bos."
        )
    said = beside.tokenizer_config.get("add_bos_token")
    if isinstance(said, bool) and said != bool(front):
        does = f"puts token {front[0]}" if front else "puts nothing"
        warnings.warn(
            f"{where} {does} in front of a text, although tokenizer_config.json says add_bos_token "
            f"{str(said).lower()}: the former counts, as in transformers; give bos to decide otherwise."
        )
    return front[0] if front else None


def _in_front(made: "tokenizers.Tokenizer") -> list[int]:
    if made.num_special_tokens_to_add(False) == 0:
        return []
    for text in _texts(made):
        try:
            encoded = made.encode(text)
        except Exception:  # a vocabulary without an unknown token: another text may do
            continue
        added = encoded.special_tokens_mask
        if 0 in added:
            return encoded.ids[: added.index(0)]
    return []


def _texts(made: "tokenizers.Tokenizer") -> Iterator[str]:
    yield from ("a", "0", " ")
    yield from islice(made.get_vocab(with_added_tokens=False), TOKENS_TRIED)
