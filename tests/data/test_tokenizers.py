"""Tokenizers: round trips, explicit special tokens, where BOS and EOS are looked up, bad files."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_jax import data

TEXT = "def resonance(wavelength):\n    return round(wavelength)  # naïve, 日本\n"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A byte-level BPE whose file asks for BOS, truncation and padding: none of it may be done."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is an extra")
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = data.tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == list(text.encode())
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


def test_bytes_facts():
    tokenizer = data.tokenizer("bytes")
    facts = (tokenizer.name, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert facts == ("bytes", 258, 256, 257, 257)
    assert tokenizer.decode([0xC3, 65]) == "\ufffdA"
    assert tokenizer.decode(np.array([], np.int32)) == ""


@pytest.mark.parametrize("kind", ["bpe", "pieces"])
def test_a_trained_file_round_trips_without_special_tokens(kind, request):
    path = request.getfixturevalue(kind)
    tokenizer = data.tokenizer(path)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32 and 8 < len(ids) < len(TEXT.encode())
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == TEXT
    assert tokenizer.encode("").tolist() == [] and tokenizer.decode([]) == ""
    assert data.tokenizer(path.parent).fingerprint == tokenizer.fingerprint
    assert tokenizer.name == f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("kind", ["bpe", "pieces"])
def test_text_that_spells_a_special_token_stays_text(kind, request):
    tokenizer = data.tokenizer(request.getfixturevalue(kind))
    ids = tokenizer.encode("a <s> b</s>")
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())
    assert tokenizer.decode(ids) == "a <s> b</s>"


def test_sentencepiece_states_its_special_tokens(pieces):
    tokenizer = data.tokenizer(pieces)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 2, 320)
    assert data.tokenizer(pieces, bos="</s>", eos=5).bos_id == 2
    with pytest.raises(ValueError, match="no token '<bos>', given as bos"):
        data.tokenizer(pieces, bos="<bos>")


def test_a_directory_prefers_tokenizer_json(bpe, pieces, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(pieces.read_bytes())
    assert data.tokenizer(tmp_path).vocab_size == 320
    (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes())
    assert data.tokenizer(tmp_path).vocab_size == 300


# Where BOS is looked up, from the last resort to the first; each beats those before it.
LOOKUPS = [
    (None, None, 0),  # the well-known name <s>
    ("config.json", {"bos_token_id": [300, 11, 12], "pad_token_id": -1}, 11),
    ("special_tokens_map.json", {"bos_token": {"content": "<pad>"}}, 2),
    ("tokenizer_config.json", {"bos_token": "</s>"}, 1),
]


def test_each_place_for_bos_beats_the_ones_after_it(bpe, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes())
    fingerprints = []
    for file, content, expected in LOOKUPS:
        if file:
            (tmp_path / file).write_text(json.dumps(content))
        tokenizer = data.tokenizer(tmp_path)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (expected, 1, 1)
        fingerprints.append(tokenizer.fingerprint)
    assert data.tokenizer(tmp_path, bos=42).bos_id == 42
    assert all(a != b for a, b in pairwise(fingerprints))


def test_no_special_tokens_at_all(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = data.tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (
        None,
        None,
        None,
        8,
    )


def test_bad_input_is_one_sentence(bpe, tmp_path):
    def complaint(*args, **options):
        with pytest.raises(ValueError) as error:
            data.tokenizer(*args, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "There is no tokenizer 'llama'" in complaint("llama")
    assert "no tokenizer.json and no tokenizer.model" in complaint(tmp_path)
    assert "leave bos and eos out" in complaint("bytes", bos=1)
    assert "in 0 ... 299, not 300" in complaint(bpe, eos=300)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert "tiktoken" in complaint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "not a tokenizer.json" in complaint(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes())
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in complaint(tmp_path)
