"""Small tokenizers as model directories have them, and what transformers makes of such a directory."""

import functools
import json

import pytest

NAMES = ("<s>", "</s>", "<pad>")


def byte_level(folder, front=(), names=NAMES):
    """A byte-level tokenizer.json: 256 bytes, then the names; its post-processor puts `front` first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: id for id, token in enumerate([*alphabet, *names])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(names))
    if front:
        placed = processors.TemplateProcessing(
            single=" ".join([*front, "$A"]), special_tokens=[(name, made.token_to_id(name)) for name in front]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), placed])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def model_bytes(**options):
    """A small sentencepiece model as LLaMA's are made: <unk>, <s>, </s>, bytes, no clean-up of blanks."""
    import io

    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world, a low wheel", "the yellow hole"] * 20),
        model_writer=(stream := io.BytesIO()),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return stream.getvalue()


def pieces(folder, **files):
    pytest.importorskip("sentencepiece", reason="sentencepiece is an extra")
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model_bytes())
    return stated(folder, **files)


def stated(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def theirs(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(folder)
