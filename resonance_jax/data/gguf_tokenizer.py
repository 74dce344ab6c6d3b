"""The tokenizer that a GGUF file's metadata describes, as the files of a Hugging Face directory.

Byte-level BPE (`tokenizer.ggml.model` = gpt2) becomes a tokenizer.json, the SentencePiece kind (llama) a
tokenizer.model. How text is split before BPE follows llama.cpp (src/llama-vocab.cpp), by the file's
`tokenizer.ggml.pre`: transformers does not know all of its names and falls back to GPT-2's split.
"""

import dataclasses
import json
from typing import TYPE_CHECKING

from resonance_jax.data.gguf_file import GgufFile

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of token, as `tokenizer.ggml.token_type` numbers them."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class Split:
    """How text is cut before BPE.

    Attributes:
        patterns: each of them in turn cuts the text.
        whole: a piece that is a token stays one, whatever the merges say.
        bos: whether BOS belongs in front where the file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False


SPLITS: dict[str, Split] = {
    "gpt-2": Split((_GPT2,)),
    "smollm": Split((r"\p{N}", _GPT2)),
    "llama-bpe": Split((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), whole=True, bos=True),
    "qwen2": Split((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",)),
}
"""llama.cpp's name of a pre-tokenizer -> how it splits."""
SPLITS |= {name: SPLITS["llama-bpe"] for name in ("llama3", "llama-v3")}
SPLITS |= {name: SPLITS["smollm"] for name in ("starcoder", "refact", "command-r")}


def tokenizer_files(file: GgufFile) -> dict[str, bytes]:
    """The tokenizer's files by name, as a Hugging Face directory has them.

    Raises ValueError for a kind of tokenizer, or a split, that is not known here, and for metadata that is
    missing or does not fit together.
    """
    kind = file.get("tokenizer.ggml.model", str)
    tokens = file.array("tokenizer.ggml.tokens", str)
    if kind is None or not tokens:
        raise ValueError(f"{file.path} holds no tokenizer; give one with --tokenizer.")
    types = file.array("tokenizer.ggml.token_type", int) or [NORMAL] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{file.path}: its tokens and their types do not fit together: fetch it again.")
    if kind == "gpt2":
        name = file.get("tokenizer.ggml.pre", str)
        if name not in SPLITS:
            raise ValueError(
                f"{file.path} splits text by the pre-tokenizer {name!r}; known are {', '.join(SPLITS)}. "
                "Give the model's tokenizer.json with --tokenizer."
            )
        split = SPLITS[str(name)]
        made = _byte_level(file, tokens, types, split)
    elif kind == "llama":
        split = Split((), bos=True)
        made = _sentencepiece(file, tokens, types)
    else:
        raise ValueError(
            f"{file.path} has a tokenizer of kind {kind!r}; known are gpt2 and llama. Give the model's own "
            "files with --tokenizer."
        )
    stated = _config(file, tokens, split.bos)
    if isinstance(made, bytes):
        files = {"tokenizer.model": made}
    else:
        if stated["add_bos_token"]:
            _put_in_front(made, file, stated.get("bos_token"))
        files = {"tokenizer.json": made.to_str().encode()}
    return {
        **files,
        "tokenizer_config.json": (json.dumps(stated, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def special_ids(file: GgufFile) -> dict[str, int]:
    """bos_token_id, eos_token_id, pad_token_id and unk_token_id, where the metadata states them."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    stated = {ours: file.get(f"tokenizer.ggml.{theirs}_token_id", int) for ours, theirs in names.items()}
    return {f"{name}_token_id": number for name, number in stated.items() if number is not None}


def _byte_level(file: GgufFile, tokens: list[str], types: list[int], split: Split) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

    merges = [tuple(pair.split(" ", 1)) for pair in file.array("tokenizer.ggml.merges", str) or []]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=split.whole)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{file.path}: its merges do not fit its tokens ({error}): fetch it again."
        ) from None
    made = tokenizers.Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(t, normalized=False, special=special)
            for t, k in zip(tokens, types, strict=True)
            if k == kind
        ]
        made.add_special_tokens(added) if special else made.add_tokens(added)
    return made


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> bytes:
    """A tokenizer.model of the same pieces, scores and kinds."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as format
    except ImportError:
        raise ValueError(
            f"The tokenizer of {file.path} needs two packages: pip install sentencepiece protobuf."
        ) from None
    scores = file.array("tokenizer.ggml.scores", float)
    if scores is None or len(scores) != len(tokens):
        raise ValueError(f"{file.path}: its tokens and their scores do not fit together: fetch it again.")
    model = format.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
    ids = special_ids(file)
    unknown = types.index(UNKNOWN) if UNKNOWN in types else ids.get("unk_token_id", 0)
    for number, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if kind == UNKNOWN and number != unknown:
            kind = CONTROL  # sentencepiece has one unknown token; no text makes another
        model.pieces.add(piece=token, score=score, type=UNKNOWN if number == unknown else kind)
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size, trainer.byte_fallback = len(tokens), BYTE in types
    trainer.unk_id = unknown
    trainer.bos_id, trainer.eos_id = ids.get("bos_token_id", 1), ids.get("eos_token_id", 2)
    trainer.pad_id = -1
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool)
    normalizer.add_dummy_prefix = True if prefix is None else bool(prefix)
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model.SerializeToString()


def _put_in_front(made: "tokenizers.Tokenizer", file: GgufFile, bos: str | None) -> None:
    """Let the tokenizer add BOS itself, as transformers' tokenizers do."""
    from tokenizers.processors import TemplateProcessing

    if bos is None:
        raise ValueError(f"{file.path} puts BOS in front of texts, but states no bos_token_id.")
    made.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, made.token_to_id(bos))]
    )


def _config(file: GgufFile, tokens: list[str], bos: bool) -> dict:
    """A tokenizer_config.json: the special tokens, whether BOS goes in front, the chat template."""
    stated: dict = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, number in special_ids(file).items():
        if not 0 <= number < len(tokens):
            raise ValueError(f"{file.path}: {name} is {number}, outside its {len(tokens)} tokens.")
        stated[name.removesuffix("_id")] = tokens[number]
    for key, default in (("add_bos_token", bos), ("add_eos_token", False)):
        given = file.get(f"tokenizer.ggml.{key}", bool)
        stated[key] = default if given is None else bool(given)
    template = file.get("tokenizer.chat_template", str)
    if template is not None:
        stated["chat_template"] = template
    longest = file.get(f"{file.get('general.architecture', str)}.context_length", int)
    if longest is not None:
        stated["model_max_length"] = longest
    return stated
