"""Tokenizers: round trips, special tokens that stay text, bad files."""

import json
import random

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
    assert tokenizer.eos_ids == (257,) and tokenizer.chat_template is None
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
    assert "There is no tokenizer ''" in complaint("")
    assert "bytes has no token '<s>', given as bos" in complaint("bytes", bos="<s>")
    assert "in 0 ... 257, not 258" in complaint("bytes", eos=258)
    assert "in 0 ... 299, not 300" in complaint(bpe, eos=300)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert "tiktoken" in complaint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "not a tokenizer.json" in complaint(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes()[:-9])
    assert "tokenizer.json is not JSON: it breaks off at its end; put back" in complaint(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes())
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in complaint(tmp_path)
    for file in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        for content in ("", "[]", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"):
            (tmp_path / file).write_text(content)
            assert file in complaint(tmp_path)
        (tmp_path / file).unlink()
    (tmp_path / "config.json").write_text("{}")
    for file, content, found in (
        ("tokenizer_config.json", {"eos_token": []}, "eos_token"),
        ("tokenizer_config.json", {"pad_token": {"content": 3}}, "pad_token"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": "a"}}, "'300'"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat template"),
        ("added_tokens.json", {"<a>": "x"}, "added_tokens.json"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id"),
        ("config.json", {"pad_token_id": [True]}, "pad_token_id"),
    ):
        (tmp_path / file).write_text(json.dumps(content))
        assert found in complaint(tmp_path)
        (tmp_path / file).unlink()


def test_a_vocabulary_without_an_unknown_token_says_so(tmp_path):
    from tokenizers import Tokenizer, models

    for name, made in (
        ("word", models.WordLevel({"a": 0}, "<unk>")),
        ("unigram", models.Unigram([("a", 0.0)])),
    ):
        (tmp_path / name).mkdir()
        Tokenizer(made).save(str(tmp_path / name / "tokenizer.json"))
        tokenizer = data.tokenizer(tmp_path / name)
        assert tokenizer.encode("a").tolist() == [0] and tokenizer.bos_id is None
        with pytest.raises(ValueError, match=r"tokenizer\.json cannot encode the text"):
            tokenizer.encode("b")
    Tokenizer(models.BPE({}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no tokens at all"):
        data.tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["bpe", "pieces"])
def test_ids_that_are_no_token_leave_no_trace(kind, request):
    """A model's embedding may have more rows than its tokenizer has tokens."""
    tokenizer = data.tokenizer(request.getfixturevalue(kind))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode([-1, *ids, tokenizer.vocab_size, 2**31 - 1, 2**40]) == TEXT


@pytest.mark.parametrize("kind", ["bpe", "pieces", "bytes"])
def test_half_a_surrogate_pair_is_refused_in_a_sentence(kind, request):
    tokenizer = data.tokenizer("bytes" if kind == "bytes" else request.getfixturevalue(kind))
    with pytest.raises(ValueError, match=r"cannot encode|half a surrogate"):
        tokenizer.encode("a\ud800b")


def test_mutated_tokenizer_files_are_read_or_refused_in_one_sentence(bpe, pieces, tmp_path):
    rng = random.Random(0)
    for source in (bpe, pieces):
        for _ in range(100):
            mutated = bytearray(source.read_bytes())
            if rng.random() < 0.3:
                mutated = mutated[: rng.randrange(len(mutated))]
            for _ in range(rng.randrange(3)):
                if mutated:
                    mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
            (tmp_path / source.name).write_bytes(mutated)
            try:
                tokenizer = data.tokenizer(tmp_path / source.name)
                tokenizer.decode(tokenizer.encode(TEXT))
            except ValueError as error:
                assert type(error) is ValueError and "\n" not in str(error)
