"""Which BOS stands in front, which ids end a document and an answer, added tokens: as transformers has it."""

import itertools
import json
import re
import warnings

import numpy as np
import pytest

from resonance_jax import data
from tests.data.small_tokenizers import byte_level, model_bytes, pieces, stated, theirs

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 320}
ABSENT = object()
CONFIGS = [
    {
        name: value
        for name, value in (("tokenizer_class", kind), ("bos_token", bos), ("add_bos_token", add))
        if value is not ABSENT
    }
    for kind, bos, add in itertools.product(
        (ABSENT, "LlamaTokenizer", "PreTrainedTokenizerFast"),
        (ABSENT, None, "<s>"),
        (ABSENT, None, False, True),
    )
]


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["front", "no front", "pieces"])
def test_what_stands_in_front_is_what_transformers_puts_there(tmp_path, kind):
    """Every way to state BOS or to be silent about it, under every kind of file."""
    seen = set()
    for number, config in enumerate(CONFIGS):
        folder = tmp_path / str(number)
        if kind == "pieces":
            pieces(folder, config=LLAMA | {"bos_token_id": 1, "eos_token_id": 2}, tokenizer_config=config)
        else:
            byte_level(folder, ("<s>",) if kind == "front" else ())
            stated(folder, config=LLAMA | {"bos_token_id": 256, "eos_token_id": 257}, tokenizer_config=config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = data.tokenizer(folder)
        ids = data.with_bos(ours.encode("hello"), ours.bos_id).tolist()
        assert ids == theirs(folder)("hello")["input_ids"], config
        seen.add(ours.bos_id)
    assert seen == {"front": {256}, "no front": {None}, "pieces": {None, 1}}[kind]


def test_a_model_file_by_itself_has_its_own_bos(tmp_path):
    assert data.tokenizer(pieces(tmp_path)).bos_id == 1
    assert data.tokenizer(pieces(tmp_path, config=LLAMA)).bos_id == 1


def test_a_flag_that_the_file_contradicts_is_told_of(tmp_path):
    stated(byte_level(tmp_path, ("<s>",)), tokenizer_config={"add_bos_token": False})
    with pytest.warns(
        UserWarning, match="puts token 256 in front of a text, although .* add_bos_token false"
    ):
        assert data.tokenizer(tmp_path).bos_id == 256
    stated(byte_level(tmp_path), tokenizer_config={"add_bos_token": True})
    with pytest.warns(UserWarning, match="puts nothing in front of a text, although .* add_bos_token true"):
        assert data.tokenizer(tmp_path).bos_id is None


def test_two_tokens_in_front_are_refused(tmp_path):
    byte_level(tmp_path, ("<s>", "<pad>"))
    with pytest.raises(ValueError, match=r"puts 2 tokens in front of a text \(\[256, 258\]\)"):
        data.tokenizer(tmp_path)
    assert data.tokenizer(tmp_path, bos="<s>").bos_id == 256


@pytest.mark.parametrize("kind", ["json", "pieces", "bytes"])
def test_bos_and_eos_can_be_given(tmp_path, kind):
    path = (
        "bytes"
        if kind == "bytes"
        else pieces(tmp_path)
        if kind == "pieces"
        else byte_level(tmp_path, ("<s>",))
    )
    auto = data.tokenizer(path)
    for given, expected in (("none", None), (7, 7), ("7", 7), (0, 0)):
        with_bos, with_eos = data.tokenizer(path, bos=given), data.tokenizer(path, eos=given)
        assert (with_bos.bos_id, with_bos.eos_id) == (expected, auto.eos_id)
        assert (with_eos.bos_id, with_eos.eos_id) == (auto.bos_id, expected)
        assert with_eos.eos_ids == (() if expected is None else (expected,))
        assert len({auto.fingerprint, with_bos.fingerprint, with_eos.fingerprint}) == 3
    if kind != "bytes":
        assert data.tokenizer(path, bos="</s>").bos_id == auto.eos_id
    assert data.tokenizer(path, bos="auto", eos="auto").fingerprint == auto.fingerprint


# --- ends


ENDS = [
    # tokenizer_config, generation_config, config; the id that ends a document, those that end an answer
    ({"eos_token": "<a>"}, {"eos_token_id": [257, 258]}, {"eos_token_id": [257, 258]}, 257, (257, 258)),
    ({"eos_token": "<b>"}, {"eos_token_id": [257, 258]}, {"eos_token_id": 257}, 258, (258, 257)),
    ({"eos_token": "<b>"}, {"eos_token_id": 257}, {}, 258, (258, 257)),
    ({"eos_token": "<b>"}, None, {"eos_token_id": [257]}, 258, (258, 257)),
    ({"eos_token": "<b>"}, {"eos_token_id": 257}, {"eos_token_id": 5}, 258, (258, 257)),
    ({"eos_token": "<b>"}, {}, {"eos_token_id": 5}, 258, (258, 5)),
    ({"eos_token": {"content": "<b>"}}, None, {"eos_token_id": None}, 258, (258,)),
    ({"eos_token": None}, {"eos_token_id": 257}, {}, None, (257,)),
    ({}, {"eos_token_id": [258, 257]}, {}, 258, (258, 257)),
    ({}, None, {"eos_token_id": 9}, 9, (9,)),
    ({}, None, {"eos_token_id": [-1, 10_000]}, 256, (256,)),
    (None, None, None, 256, (256,)),
    ({"eos_token": "<gone>"}, None, {"eos_token_id": 258}, 258, (258,)),
]


@pytest.mark.parametrize("case", range(len(ENDS)))
def test_every_end_counts_and_the_tokenizers_own_comes_first(tmp_path, case):
    """Llama 3 Instruct's layout: the tokenizer names one end token, generation_config.json lists two."""
    *contents, ends_document, ends_answer = ENDS[case]
    byte_level(tmp_path, names=("</s>", "<a>", "<b>"))
    names = ("tokenizer_config", "generation_config", "config")
    stated(
        tmp_path,
        **{name: content for name, content in zip(names, contents, strict=True) if content is not None},
    )
    tokenizer = data.tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (ends_document, ends_answer)
    assert tokenizer.pad_id == ends_document


SPELLED_OUT = {"content": "<s>", "__type": "AddedToken"}


@pytest.mark.parity
def test_the_own_end_and_padding_are_those_of_transformers(tmp_path):
    """special_tokens_map.json goes before tokenizer_config.json, unless that lists added tokens."""
    entry = {"258": {"content": "<pad>", "special": True}}
    places = (
        {},
        {"eos_token": None},
        {"eos_token": "</s>", "pad_token": "<pad>"},
        {"eos_token": SPELLED_OUT},
    )
    for number, (config, mapped, decoder) in enumerate(itertools.product(places, places, (False, True))):
        folder = byte_level(tmp_path / str(number))
        listed = {"added_tokens_decoder": entry} if decoder else {}
        stated(
            folder,
            config={"model_type": "llama"},
            tokenizer_config=config | listed,
            special_tokens_map=mapped,
        )
        reference, ours = theirs(folder), data.tokenizer(folder)
        if reference.eos_token_id is not None:
            assert ours.eos_id == reference.eos_token_id, (config, mapped, decoder)
        if reference.pad_token_id is not None:
            assert ours.pad_id == reference.pad_token_id


def test_padding_and_ends_beyond_the_embedding(tmp_path):
    """A padding token in a row that the embedding does not have is harmless: no text makes it."""
    byte_level(tmp_path)
    stated(tmp_path, config={"vocab_size": 258, "pad_token_id": 258}, tokenizer_config={"pad_token": "<pad>"})
    tokenizer = data.tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (259, 258)
    data.check_ids(tokenizer.encode("any text"), 258, "It")


# --- added tokens


ADDED = {
    "300": ("<tool>", False, {}),
    "301": ("<|turn|>", True, {}),
    "302": ("<left>", False, {"lstrip": True}),
}
SPACED = [
    "a<tool>b",
    "low <tool> wheel",
    "<tool>hello",
    "hello world<tool>",
    "<tool><tool> a",
    "a <left> b",
    "plain",
]


def added_tokens(legacy):
    decoder = {"0": ("<unk>", True, {}), "1": ("<s>", True, {}), "2": ("</s>", True, {}), **ADDED}
    flags = {"rstrip": False, "lstrip": False, "normalized": False, "single_word": False}
    entries = {
        id: {"content": text, "special": special} | flags | more
        for id, (text, special, more) in decoder.items()
    }
    return {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "added_tokens_decoder": entries}


def with_added(folder, legacy):
    """A model with exactly as many pieces as its first added token's id says."""
    pieces(folder, config=LLAMA)
    count = data.tokenizer(folder).vocab_size
    config = json.dumps(added_tokens(legacy))
    for number, id in enumerate(ADDED):
        config = config.replace(f'"{id}"', f'"{count + number}"')
    (folder / "tokenizer_config.json").write_text(config)
    return count


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [True, False])
def test_added_tokens_of_a_sentencepiece_model_are_those_of_transformers(tmp_path, legacy):
    count = with_added(tmp_path, legacy)
    ours, reference = data.tokenizer(tmp_path), theirs(tmp_path)
    assert ours.vocab_size == len(reference) == count + 3
    for text in SPACED:
        ids = ours.encode(text).tolist()
        assert ids == reference(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True), text
    for text in ("a<|turn|>b</s>", "<s>hello<tool>", "<|turn|> low"):
        ids = ours.encode(text, parse_special=True).tolist()
        assert ids == reference(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True), text


def test_a_special_added_token_stays_text_unless_it_is_parsed(tmp_path):
    count = with_added(tmp_path, False)
    tokenizer = data.tokenizer(tmp_path)
    assert count + 1 not in tokenizer.encode("a<|turn|>b") and count in tokenizer.encode("a<tool>b")
    assert tokenizer.encode("a<|turn|>b", parse_special=True).tolist().count(count + 1) == 1
    assert tokenizer.decode(tokenizer.encode("a<|turn|>b")) == "a<|turn|>b"
    assert data.tokenizer(tmp_path, eos="<|turn|>").eos_ids == (count + 1,)


def test_added_tokens_json_of_older_models(tmp_path):
    pieces(tmp_path, added_tokens={"<tool>": 400, "<pad>": 401}, special_tokens_map={"pad_token": "<pad>"})
    tokenizer = data.tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (402, 401)
    ids = tokenizer.encode("a<tool>b<pad>")
    assert (
        ids.tolist().count(400) == 1
        and 401 not in ids
        and tokenizer.decode([*ids, 401, 399]) == "a<tool> b<pad>"
    )


@pytest.mark.parity
def test_added_tokens_that_tokenizer_json_lacks(tmp_path):
    byte_level(tmp_path)
    stated(tmp_path, config={"model_type": "llama"}, added_tokens={"<tool>": 259}, tokenizer_config={})
    ours, reference = data.tokenizer(tmp_path), theirs(tmp_path)
    assert ours.encode("a<tool>b").tolist() == reference("a<tool>b")["input_ids"] and ours.vocab_size == 260


def test_what_changes_ids_changes_the_fingerprint(tmp_path):
    count = with_added(tmp_path, False)
    config = tmp_path / "tokenizer_config.json"
    written = config.read_text()
    variants = [
        written,
        written.replace("<tool>", "<tools>"),
        written.replace('"legacy": false', '"legacy": true'),
        written.replace(
            f'"{count}": {{"content": "<tool>", "special": false',
            f'"{count}": {{"content": "<tool>", "special": true',
        ),
        json.dumps({**json.loads(written), "add_bos_token": True}),
        json.dumps({**json.loads(written), "eos_token": "<s>"}),
    ]
    seen = set()
    for variant in variants:
        config.write_text(variant)
        seen.add(data.tokenizer(tmp_path).fingerprint)
    assert len(seen) == len(variants)
    config.write_text(written)
    before = data.tokenizer(tmp_path).fingerprint
    (tmp_path / "tokenizer.model").write_bytes(model_bytes(user_defined_symbols="<x>"))
    assert data.tokenizer(tmp_path).fingerprint != before


# --- ids of documents


def test_bos_stands_in_front_exactly_once():
    for ids in ([], [256], [256, 1], [1, 256], [1]):
        ids = np.array(ids, np.int64)
        once, none = data.with_bos(ids, 256), data.without_bos(ids, 256)
        assert once.dtype == none.dtype == np.int32
        assert once.tolist() == ([256] if ids[:1].tolist() != [256] else []) + ids.tolist()
        assert none.tolist() == (ids[1:] if ids[:1].tolist() == [256] else ids).tolist()
        assert data.with_bos(ids, None).tolist() == data.without_bos(ids, None).tolist() == ids.tolist()
        assert data.with_bos(none, 256).tolist() == once.tolist()


def test_a_document_with_text_and_ids_gives_its_text_where_there_is_a_tokenizer():
    tokenizer = data.tokenizer("bytes")
    ids = np.array([5, 6], np.int32)
    both, stored = data.Document("d", "ab", ids), data.Document("d", "", ids)
    assert data.document_ids(both, tokenizer).tolist() == [97, 98]
    assert data.document_ids(both, None).tolist() == data.document_ids(stored, tokenizer).tolist() == [5, 6]
    with pytest.raises(ValueError, match="document d is text: a tokenizer is needed"):
        data.document_ids(data.Document("d", "ab"), None)
    with pytest.raises(ValueError, match=r"document d cannot be encoded: .* half a surrogate pair"):
        data.document_ids(data.Document("d", "\ud800"), tokenizer)


def test_ids_outside_the_vocabulary_name_document_id_and_vocabulary():
    foreign = data.Document("d", "", np.array([3, 258], np.int32))
    expected = "document d holds token 258, outside the vocabulary of the tokenizer bytes (0 ... 257)"
    with pytest.raises(ValueError, match=re.escape(expected)):
        data.document_ids(foreign, data.tokenizer("bytes"))
    with pytest.raises(
        ValueError, match=r"Prompt 3 holds token -1, outside the vocabulary of the model \(0 ... 9\)"
    ):
        data.check_ids(np.array([-1, 5]), 10, "Prompt 3")
    data.check_ids(np.array([], np.int32), 10, "It")
    data.check_ids(np.array([0, 9]), 10, "It")
