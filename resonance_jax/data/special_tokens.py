"""What the files beside a tokenizer say about BOS, EOS, padding and added tokens, as transformers does."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resonance_jax.files import half_surrogate, of_kind, read_json

WELL_KNOWN_EOS = ("</s>", "<|end_of_text|>")
REMEDY = "put back an undamaged copy"
IdOf = Callable[[str], int | None]
"""The id of a token by its exact text, or None where there is none."""


@dataclass(frozen=True)
class Added:
    """A token that was added to a vocabulary.

    Attributes:
        text: how it is written.
        special: text that spells it stays text; a token that is not special is found in texts.
        lstrip, rstrip: whether the white space before it, and after it, in a text belongs to it.
    """

    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Beside:
    """The contents of the JSON files beside a tokenizer; {} for one that is not there.

    is_huggingface: whether there is a tokenizer_config.json, so that what it leaves out is as transformers
    takes it.
    """

    folder: Path
    is_huggingface: bool
    tokenizer_config: Mapping[str, object]
    special_tokens_map: Mapping[str, object]
    added_tokens: Mapping[str, object]
    generation_config: Mapping[str, object]
    config: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path) -> "Beside":
        """The files of a directory. ValueError names the one that is damaged."""
        names = ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config")
        paths = [folder / f"{name}.json" for name in names]
        found = (read_json(path, dict, REMEDY) if path.is_file() else {} for path in paths)
        return cls(folder, paths[0].is_file(), *found)

    def denies(self, kind: str) -> bool:
        """Whether the tokenizer's files say null, so that there is no such token; silence is no denial."""
        stated = {**self.tokenizer_config, **self._map()}
        return f"{kind}_token" in stated and stated[f"{kind}_token"] is None

    def token(self, kind: str) -> str | None:
        """The text of the tokenizer's "bos", "eos", "pad" … token; None where there is none.

        special_tokens_map.json goes before tokenizer_config.json, unless the latter lists its added tokens,
        which only newer ones do.
        """
        value = {**self.tokenizer_config, **self._map()}.get(f"{kind}_token")
        return None if value is None else self._content(value, f"{kind}_token")

    def _map(self) -> Mapping[str, object]:
        return {} if "added_tokens_decoder" in self.tokenizer_config else self.special_tokens_map

    def _content(self, value: object, what: str) -> str:
        where = f"The {what} of the tokenizer in {self.folder}"
        text = of_kind(value.get("content") if isinstance(value, dict) else value, str, where)
        if half_surrogate(text) is not None:
            raise ValueError(f"{where} holds half a surrogate pair.")
        return text

    def tokens(self) -> dict[str, str]:
        """The texts of all special tokens that have one, by name ("bos_token" …)."""
        kinds = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        return {f"{kind}_token": text for kind in kinds if (text := self.token(kind)) is not None}

    def ids(self, kind: str, vocab_size: int) -> list[int]:
        """The ids that generation_config.json, else config.json, states for "eos" or "pad".

        Args:
            kind: "eos" or "pad".
            vocab_size: of the tokenizer; config.json's own goes before it. Ids outside are no tokens.

        Raises:
            ValueError: a stated id is no whole number.
        """
        key = f"{kind}_token_id"
        stated = self.generation_config.get(key)
        stated = self.config.get(key) if stated is None else stated
        embedded = self.config.get("vocab_size")
        limit = embedded if isinstance(embedded, int) else vocab_size
        found = []
        for id in stated if isinstance(stated, list) else [] if stated is None else [stated]:
            if not isinstance(id, int) or isinstance(id, bool):
                raise ValueError(f"The {key} in {self.folder} is {id!r}, expected a whole number or a list.")
            if 0 <= id < limit:
                found.append(id)
        return found

    def added(self) -> dict[int, Added]:
        """The added tokens by id: tokenizer_config.json's added_tokens_decoder, else added_tokens.json.

        Raises:
            ValueError: an entry is no token with a whole number.
        """
        decoder = self.tokenizer_config.get("added_tokens_decoder")
        if decoder is not None:
            where = f"added_tokens_decoder in {self.folder / 'tokenizer_config.json'}"
            entries = [(id, token) for id, token in of_kind(decoder, dict, where).items()]
        else:
            where = str(self.folder / "added_tokens.json")
            special = set(self.tokens().values())
            entries = [
                (id, {"content": text, "special": text in special}) for text, id in self.added_tokens.items()
            ]
        found = {}
        for id, token in entries:
            if not re.fullmatch(r"\d{1,9}", str(id)) or not isinstance(token, dict):
                raise ValueError(f"{where} holds the entry {id!r}, expected an id and a token.")
            flags = {name: bool(token.get(name)) for name in ("special", "lstrip", "rstrip")}
            text = self._content(token, f"added token {id}")
            if not text:
                raise ValueError(f"{where} states an empty token as id {id}.")
            found[int(str(id))] = Added(text, **flags)
        return dict(sorted(found.items()))


def special_id(given: str | int, kind: str, id_of: IdOf, vocab_size: int, where: str) -> int | None:
    """The id that a caller gave for BOS or EOS, in place of what the files say.

    Args:
        given: "none", a token's text, or an id, also in digits, as a command line has it.
        kind: "bos" or "eos", for the error sentence.
        id_of: looks a text up.
        vocab_size: ids 0 ... vocab_size - 1 are tokens.
        where: names the tokenizer in the error sentence.

    Raises:
        ValueError: there is no such token.
    """
    if given == "none":
        return None
    digits = isinstance(given, str) and re.fullmatch(r"-?[0-9]{1,9}", given)
    id = int(given) if isinstance(given, int) or digits else id_of(given)
    if id is None:
        raise ValueError(f"{where} has no token {given!r}, given as {kind}.")
    if not 0 <= id < vocab_size:
        raise ValueError(f"The {kind} id must be in 0 ... {vocab_size - 1}, not {id}.")
    return id


def end_ids(
    given: str | int, own: int | None, beside: Beside, id_of: IdOf, vocab_size: int, where: str
) -> tuple[int | None, tuple[int, ...]]:
    """(the id that ends a document, all ids that end an answer).

    A document ends with the tokenizer's own eos_token. Where its files do not speak of one, it is the first
    that generation_config.json lists, or config.json where that says nothing; then a token with a well-known
    name. An answer ends with that, or with any in the list. So both end tokens of Llama 3 Instruct count,
    whichever of them the tokenizer names.

    Args:
        given: "auto", or what `special_id` takes, which is then the only one.
        own: the id of the tokenizer's own eos_token.
        beside: the files beside the tokenizer.
        id_of: looks a text up.
        vocab_size: of the tokenizer.
        where: names the tokenizer in error sentences.

    Raises:
        ValueError: there is no such token, or a stated id is no whole number.
    """
    if given != "auto":
        id = special_id(given, "eos", id_of, vocab_size, where)
        return id, () if id is None else (id,)
    stated = beside.ids("eos", vocab_size)
    if own is None and not beside.denies("eos"):
        known = [id for text in WELL_KNOWN_EOS if (id := id_of(text)) is not None]
        own = next(iter([*stated, *known]), None)
    ends: Sequence[int] = stated if own is None else [own, *stated]
    return own, tuple(dict.fromkeys(ends))
