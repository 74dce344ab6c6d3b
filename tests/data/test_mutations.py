"""Values of JSON files replaced by others of every type: each file is read, or refused in one sentence."""

import json
import random
import warnings

import pytest

from resonance_jax import data
from resonance_jax.data import leval
from tests.data.small_tokenizers import byte_level, pieces
from tests.mutations import mutated

FILES = {
    "tokenizer_config": {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "add_bos_token": True,
        "legacy": False,
        "chat_template": [{"name": "default", "template": "{{ bos_token }}x"}],
        "added_tokens_decoder": {
            "300": {"content": "<t>", "special": False, "lstrip": True},
            "301": {"content": "<u>", "special": True},
        },
    },
    "special_tokens_map": {"eos_token": "</s>", "pad_token": {"content": "<pad>"}},
    "added_tokens": {"<t>": 300, "<u>": 301},
    "generation_config": {"eos_token_id": [257, 258]},
    "config": {"vocab_size": 320, "eos_token_id": 257, "pad_token_id": 258},
    "chat_template": {"chat_template": "{{ messages[0].content }}"},
}


@pytest.mark.parametrize("kind", ["json", "pieces"])
def test_mutated_files_beside_a_tokenizer(tmp_path, kind):
    rng, read, refused = random.Random(kind), 0, 0
    own = byte_level(tmp_path, ("<s>",)) if kind == "json" else pieces(tmp_path)
    whole = json.loads((own / "tokenizer.json").read_text()) if kind == "json" else None
    for _ in range(150):
        for name, content in FILES.items():
            changed = mutated(content, rng) if rng.random() < 0.2 else content
            (tmp_path / f"{name}.json").write_text(json.dumps(changed))
        if whole is not None:
            changed = mutated(whole, rng) if rng.random() < 0.3 else whole
            (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tokenizer = data.tokenizer(tmp_path)
            ids = tokenizer.encode("a <t> b<u>")
            tokenizer.decode([*ids, *tokenizer.encode("a<u></s>", parse_special=True), 300, 301, 400])
            if tokenizer.chat_template is not None:
                tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error)
            refused += 1
        else:
            data.check_ids(ids, tokenizer.vocab_size, "It")
            assert tokenizer.eos_id is None or tokenizer.eos_ids[0] == tokenizer.eos_id
            read += 1
    assert read > 20 and refused > 20


def test_mutated_records(tmp_path):
    rng = random.Random(1)
    records = [{"text": "one", "input_ids": [1, 2]}, {"text": "two"}, {"input_ids": [3]}]
    for _ in range(300):
        changed = mutated(records, rng)
        whole = rng.random() < 0.5 or not isinstance(changed, list)
        text = json.dumps(changed) if whole else "".join(json.dumps(record) + "\n" for record in changed)
        (tmp_path / "a.json").write_text(text)
        try:
            documents = list(data.corpus(tmp_path / "a.json").documents(lambda left_out: None))
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error)
        else:
            assert all(document.text or len(document.tokens) for document in documents)


def test_mutated_questions(tmp_path):
    rng = random.Random(2)
    record = {"input": "A text.", "instructions": ["Q?", "R?"], "outputs": ["A", "B"], "evaluation": "exam"}
    for _ in range(300):
        (tmp_path / "tpo.jsonl").write_text(json.dumps(mutated(record, rng)) + "\n" + json.dumps(record))
        questions, problems = leval.read(tmp_path, "tpo")
        assert [question.id for question in questions[-2:]] == ["1:0", "1:1"]
        assert all("\n" not in problem for problem in problems)
        for question in questions:
            assert leval.prompt("tpo", question.document, question.instruction).encode()
