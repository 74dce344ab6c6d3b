"""Chat templates: where they are found, and rendered as transformers renders them."""

import json
import sys

import pytest

from resonance_jax import data
from tests.data.small_tokenizers import byte_level, stated, theirs

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A <b> & 'c'?\n"},
    {"role": "assistant", "content": "Yes."},
]
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}{{ '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama": (
        "{{ bos_token }}{%- for m in messages %}\n  {%- if m.role == 'system' %}<<SYS>>{{ m.content }}"
        "{%- elif loop.last %}\n{% break %}\n{% else %}[{{ m['content'] | trim }}]{{ eos_token }}{% endif %}"
        "\n{%- endfor %}{{ pad_token is defined }}"
    ),
    "json": "{{ messages | tojson }}\n    {% if tools %}never{% endif %}\n{{ messages | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 2 %}{% endfor %}"
    "{{ n.k }}",
}


@pytest.fixture
def folder(tmp_path):
    stated(
        byte_level(tmp_path, ("<s>",)),
        config={"model_type": "llama"},
        tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}},
    )
    return tmp_path


@pytest.mark.parity
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("open_end", [True, False])
def test_a_conversation_reads_as_in_transformers(folder, template, open_end):
    (folder / "chat_template.jinja").write_text(TEMPLATES[template])
    ours, reference = data.tokenizer(folder), theirs(folder)
    text = ours.apply_chat_template(MESSAGES, open_end)
    assert text == reference.apply_chat_template(MESSAGES, add_generation_prompt=open_end, tokenize=False)
    ids = reference.apply_chat_template(MESSAGES, add_generation_prompt=open_end, return_dict=False)
    assert ours.encode(text, parse_special=True).tolist() == ids


def test_special_tokens_of_a_template_become_ids_and_bos_comes_once(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATES["llama"])
    tokenizer = data.tokenizer(folder)
    ids = tokenizer.encode(tokenizer.apply_chat_template(MESSAGES), parse_special=True)
    assert ids[0] == 256 and ids.tolist().count(257) == 1
    assert data.with_bos(ids, tokenizer.bos_id).tolist() == ids.tolist()


def test_where_a_template_is_found(folder):
    assert data.tokenizer(folder).chat_template is None
    with pytest.raises(ValueError, match="has no chat template: give plain prompts"):
        data.tokenizer(folder).apply_chat_template(MESSAGES)
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]
    stated(folder, tokenizer_config={"chat_template": several})
    assert data.tokenizer(folder).chat_template == "list"
    stated(folder, tokenizer_config={"chat_template": "config"})
    assert data.tokenizer(folder).chat_template == "config"
    stated(folder, chat_template={"chat_template": "json"})
    assert data.tokenizer(folder).chat_template == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    assert data.tokenizer(folder).chat_template == "jinja"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for %}", "cannot be applied"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[0].nothing.more }}", "cannot be applied"),
        ("{{ messages.append(1) }}", "cannot be applied"),
        ("{{ ''.__class__.__mro__ }}", "cannot be applied"),
        ("{% for i in range(10**9) %}{% endfor %}", "cannot be applied"),
        ("{{ messages + 1 }}", "cannot be applied"),
    ],
)
def test_a_template_that_fails_is_one_sentence(folder, template, expected):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=expected) as error:
        data.tokenizer(folder).apply_chat_template(MESSAGES)
    assert "\n" not in str(error.value)


def test_without_jinja2(folder, monkeypatch):
    (folder / "chat_template.jinja").write_text("x")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match="needs jinja2: pip install jinja2"):
        data.tokenizer(folder).apply_chat_template(MESSAGES)


def test_a_damaged_template_file(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        data.tokenizer(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match="is a number, expected a string"):
        data.tokenizer(folder)
