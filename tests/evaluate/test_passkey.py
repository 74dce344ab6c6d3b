"""Passkey: the prompts to the letter, the judge, and a whole grid with a model that knows the answer."""

import numpy as np
import pytest

from resonance_jax import data, generate, model, rope
from resonance_jax.evaluate import passkey
from resonance_jax.evaluate.binomial import mean, wilson
from resonance_jax.evaluate.bootstrap import Interval

BYTES = data.tokenizer("bytes")
count = lambda text: len(data.prompt_ids(BYTES, text))


def test_the_original_wording_to_the_letter():
    assert passkey.template("landmark").prompt(271, 100, 0.25) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I "
        "will quiz you about the important information there.\n"
        "The grass is green. The s\n"
        "The pass key is 271. Remember it. 271 is the pass key.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There a\n"
        "What is the pass key? The pass key is"
    )


@pytest.mark.parametrize("depth", [0, 0.3, 1])
@pytest.mark.parametrize("name", passkey.TEMPLATES)
def test_depth_is_the_share_of_garbage_before_the_key(name, depth):
    wording = passkey.template(name)
    lines = wording.prompt(1234, 1000, depth).split("\n")
    assert len(lines) == 5 and len(lines[1]) == 1000 * depth and len(lines[1] + lines[3]) == 1000
    assert "1234" in lines[2]


def test_garbage_grows_in_the_protocols_steps_to_just_below_the_length():
    wording = passkey.template("landmark")
    characters = passkey.garbage_characters(wording, 2048, count)
    assert characters % 128 == 0
    sizes = [count(wording.prompt(50_000, n, 0.5)) for n in (characters, characters + 128)]
    assert sizes[0] < 2048 <= sizes[1]


def test_the_short_template_fills_the_length_with_its_answer():
    wording = passkey.template("short-bytes")
    characters = passkey.garbage_characters(wording, 512, count)
    assert count(wording.prompt(1234, characters, 0.5)) + wording.max_new_tokens == 512
    assert len(wording.answer(1234)) == wording.max_new_tokens


def test_a_length_without_room_is_refused():
    with pytest.raises(ValueError, match="'short-bytes' alone is longer than 32 tokens"):
        passkey.garbage_characters(passkey.template("short-bytes"), 32, count)
    with pytest.raises(ValueError, match="expected one of landmark, short-bytes"):
        passkey.template("long")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" 4821.", True),
        (" 4821", True),
        ("4821 or 7", True),
        (" 48210.", False),
        (" 7, 4821", False),
        ("", False),
    ],
)
def test_the_first_whole_number_is_the_answer(text, right):
    assert passkey.found(text, 4821) is right


def test_keys_are_uniform_and_a_prefix_of_more():
    wording = passkey.template("landmark")
    keys = passkey.draw_keys(wording, 4000, seed=3)
    assert keys.min() >= 1 and keys.max() <= 50_000 and abs(keys.mean() - 25_000) < 1000
    np.testing.assert_array_equal(passkey.draw_keys(wording, 10, seed=3), keys[:10])


@pytest.mark.parametrize("questions", [1, 3])
def test_training_scores_answers_only(questions):
    wording = passkey.template("short-bytes")
    batch = passkey.training_batch(wording, BYTES, 96, 8, seed=0, step=5, questions=questions)
    same = passkey.training_batch(wording, BYTES, 96, 8, seed=0, step=5, questions=questions)
    other = passkey.training_batch(wording, BYTES, 96, 8, seed=0, step=6, questions=questions)
    np.testing.assert_array_equal(batch["tokens"], same["tokens"])
    assert (batch["tokens"] != other["tokens"]).any()
    for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
        key = BYTES.decode(tokens).split("Key ")[1][:4]
        scored = targets != -100
        assert BYTES.decode(targets[scored]) == f" {key}." * questions
        np.testing.assert_array_equal(tokens[scored], targets[scored])


@pytest.fixture(scope="module")
def decoder():
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 16, "d_ff": 16}
    return model.Decoder(model.PRESETS["tiny"].replace(**shape))


class Knows:
    """Stands for generate.generate: tells the key of prompts up to a length."""

    def __init__(self, most: int):
        self.most, self.tables = most, []

    def __call__(self, lm, prompts, freqs, *, max_new_tokens, eos_id, decode):
        self.tables.append(freqs)
        texts = [BYTES.decode(p) for p in prompts]
        said = [f" {text.split('Key ')[1][:4]}." if len(text) <= self.most else " 1." for text in texts]
        return generate.Generation((), (), tuple(said))


def test_a_grid_counts_and_declares_its_length_to_a_dynamic_encoding(decoder, monkeypatch):
    knows = Knows(most=200)
    monkeypatch.setattr(generate, "generate", knows)
    spec, wording = (
        rope.RopeSpec("dynamic_ntk", head_dim=16, train_length=128),
        passkey.template("short-bytes"),
    )
    cells = [
        passkey.cell(decoder, BYTES, spec, wording, length, depth, trials=5, batch_size=2)
        for length in (128, 256)
        for depth in (0.0, 0.5)
    ]
    assert [c["right"] for c in cells] == [5, 5, 0, 0] and {c["template"] for c in cells} == {"short-bytes"}
    assert passkey.by_length(cells) == {128: (10, 10), 256: (0, 10)} and passkey.reach(cells) == 128
    assert cells[0]["prompt_tokens"] == 122 and cells[0]["answers"][0][1] == f" {cells[0]['answers'][0][0]}."
    assert rope.same(knows.tables[0], rope.frequencies(spec, length=128))
    assert rope.same(knows.tables[-1], rope.frequencies(spec, length=256))
    assert passkey.reach([{**c, "right": 3} for c in cells]) is None


def test_a_cell_with_a_real_decoder(decoder):
    spec = rope.RopeSpec(head_dim=16)
    one = passkey.cell(decoder, BYTES, spec, passkey.template("short-bytes"), 128, 0.5, 3)
    assert one["right"] == 0 and len(one["answers"]) == 3 and one["low"] == 0 < one["high"] < 1
    with pytest.raises(ValueError, match="depth in 0 … 1"):
        passkey.cell(decoder, BYTES, spec, passkey.template("short-bytes"), 128, 2.0, 3)


def test_wilsons_interval():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    a, b = wilson(81, 263), wilson(0, 20)
    assert (round(a.low, 4), round(a.high, 4)) == (0.2553, 0.3662)
    assert (b.low, round(b.high, 4)) == (0.0, 0.1611)
    assert wilson(20, 20).high == 1 and wilson(1.25, 5).value == 0.25
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)


def test_the_mean_of_intervals_adds_their_squared_halves():
    one, two = Interval(0.5, 0.2, 0.8), Interval(0.3, 0.3 - 0.4, 0.7)
    assert mean([one, two]) == Interval(0.4, 0.4 - 0.25, 0.4 + 0.25)
    with pytest.raises(ValueError, match="at least one"):
        mean([])
