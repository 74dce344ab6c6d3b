"""Whole runs: what a row depends on, when it ends, what is drawn, and how often a program is compiled."""

import chex
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from resonance_jax import generate, rope
from resonance_jax.generate import decode as decode_module
from resonance_jax.generate import decoding_weights
from resonance_jax.generate.sampling import Sampling, next_tokens, nucleus
from resonance_jax.generate.stopping import Row
from resonance_jax.model import Decoder
from resonance_jax.model.lowering import lowering_for
from resonance_jax.parallel.mesh import make_mesh
from tests.generate.small import CONFIG, HEAD, lively
from tests.unchecked import unchecked

FREQS = rope.frequencies(
    rope.RopeSpec("yarn", head_dim=HEAD, scale=8.0, train_length=16, resonance=True, base=100.0)
)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 61, n) for n in (3, 40, 1, 17)]
NEW = 40

lm = Decoder(CONFIG, params=lively(CONFIG))


def letters(tokens):
    """A vocabulary of 61 letters."""
    return "".join(chr(ord("A") + token) for token in tokens)


def run(prompts=PROMPTS, **options):
    return generate.generate(lm, prompts, FREQS, **{"max_new_tokens": NEW, **options})


@pytest.fixture(scope="module")
def greedy():
    return run()


def test_greedy_takes_the_likeliest_token_of_a_full_forward(greedy):
    assert greedy.reasons == ("length",) * 4 and greedy.texts is None
    whole = np.zeros((4, 80), np.int32)
    for row, prompt, new in zip(whole, PROMPTS, greedy.tokens, strict=True):
        assert new.dtype == np.int32 and len(new) == NEW
        row[: len(prompt) + NEW] = [*prompt, *new]
    logits = np.asarray(lm(whole, FREQS))
    for row, prompt, new in zip(logits, PROMPTS, greedy.tokens, strict=True):
        np.testing.assert_array_equal(row[len(prompt) - 1 :][:NEW].argmax(axis=-1), new)


SAMPLED = dict(temperature=1.3, top_p=0.9, key=jax.random.key(5))


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_its_neighbours(options):
    together = run(**options)
    rng = np.random.default_rng(1)
    for _ in range(8):
        row = int(rng.integers(4))
        others = [rng.integers(0, 61, rng.integers(1, 65)) for _ in range(4)]
        others[row] = PROMPTS[row]
        np.testing.assert_array_equal(run(others, **options).tokens[row], together.tokens[row])


def test_a_row_alone(greedy):
    for prompt, new in zip(PROMPTS, greedy.tokens, strict=True):
        alone = run([prompt], eos_id=int(new[5]))
        np.testing.assert_array_equal(alone.tokens[0], new[: len(alone.tokens[0])])
        assert 0 < len(alone.tokens[0]) <= 6


def test_eos_ends_a_row_and_nobody_else(greedy):
    eos = [int(greedy.tokens[0][5]), int(greedy.tokens[2][20])]
    ended = run(eos_id=eos, decode=letters)
    for row, tokens in enumerate(greedy.tokens):
        ends = np.flatnonzero(np.isin(tokens, eos))
        stop = ends[0] + 1 if len(ends) else NEW
        np.testing.assert_array_equal(ended.tokens[row], tokens[:stop])
        assert ended.reasons[row] == ("eos" if len(ends) else "length")
        assert ended.texts[row] == letters(tokens[: stop - 1] if len(ends) else tokens)
    assert ended.reasons[0] == ended.reasons[2] == "eos"


def test_a_run_ends_with_its_last_row(greedy, monkeypatch):
    """No step is made after it, on the device or by the host."""
    steps = []
    real = decode_module._continue

    def counted(*args):
        *rest, count = real(*args)
        steps.append(int(count))
        return *rest, count

    monkeypatch.setattr(decode_module, "_continue", counted)
    for at in (0, 3):
        steps.clear()
        ended = run(PROMPTS[:1] * 4, eos_id=[int(greedy.tokens[0][at])] * 2)
        assert 1 + sum(steps) == max(map(len, ended.tokens)) <= at + 1
    steps.clear()
    run()
    assert 1 + sum(steps) == NEW


@pytest.mark.parametrize("start", [0, 13, 15, 30])  # in the first token, across two looks, across one
def test_a_stop_string_cuts_the_text(greedy, start):
    texts = [letters(tokens) for tokens in greedy.tokens]
    stop = texts[1][start : start + 4]
    stopped = run(stop=["not to be found", stop], decode=letters)
    for row, text in enumerate(texts):
        at = text.find(stop)
        assert stopped.texts[row] == (text[:at] if at >= 0 else text)
        assert stopped.reasons[row] == ("stop" if at >= 0 else "length")
        assert len(stopped.tokens[row]) == (at + 4 if at >= 0 else NEW)
    assert stopped.reasons[1] == "stop"
    assert run(stop=stop, decode=letters).texts == stopped.texts


@hypothesis.given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    stops=st.lists(st.text("ABCD", min_size=1, max_size=3), max_size=2),
    eos=st.lists(st.integers(0, 3), max_size=1),
    cuts=st.lists(st.integers(1, 20), max_size=3),
)
def test_where_a_row_ends_does_not_depend_on_when_it_is_looked_at(tokens, stops, eos, cuts):
    row = Row(np.array(eos, np.int32), stops, letters, len(tokens))
    for part in np.split(np.array(tokens), sorted(cuts)):
        row.take(part)
    for count in range(1, len(tokens) + 1):  # the first prefix that ends
        ended = tokens[count - 1] in eos
        text = letters(tokens[: count - ended])
        found = [text.find(stop) for stop in stops if stop in text]
        if found or ended:
            assert row.reason == ("stop" if found else "eos")
            assert row.tokens == tokens[:count] and row.text() == text[: min(found, default=None)]
            return
    assert row.reason == "length" and row.tokens == tokens and row.text() == letters(tokens)


# Drawing.


def test_what_is_drawn_is_a_function_of_the_key():
    first, again = run(**SAMPLED), run(**SAMPLED)
    chex.assert_trees_all_equal(list(first.tokens), list(again.tokens))
    other = run(**SAMPLED | {"key": jax.random.key(6)})
    assert all((a != b).any() for a, b in zip(first.tokens, other.tokens, strict=True))
    assert all((a != b).any() for a, b in zip(first.tokens, run().tokens, strict=True))


def test_a_low_temperature_is_greedy(greedy):
    for options in ({"temperature": 1e-4}, {"temperature": 2.0, "top_p": 1e-6}):
        drawn = run(**options, key=jax.random.key(0))
        chex.assert_trees_all_equal(list(drawn.tokens), list(greedy.tokens))


def test_draws_follow_the_softmax():
    logits = np.random.default_rng(2).normal(size=8).astype(np.float32) * 2
    count, temperature = 40_000, 1.7
    draw = jax.jit(lambda logits, step, sampling: next_tokens(logits, step, sampling))
    for top_p in (None, np.float32(0.7)):
        sampling = Sampling(jax.random.key(1), np.float32(temperature), top_p)
        drawn = draw(np.tile(logits, (count, 1)), np.int32(3), sampling)
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        if top_p is not None:
            order = np.argsort(-p)
            kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
            assert 1 < len(kept) < 8
            p = np.where(np.isin(np.arange(8), kept), p, 0) / p[kept].sum()
        share = np.bincount(drawn, minlength=8) / count
        assert (share[p == 0] == 0).all()
        np.testing.assert_array_less(np.abs(share - p), 4 * np.sqrt(p * (1 - p) / count) + 1e-9)
    steps = [draw(np.tile(logits, (100, 1)), np.int32(step), sampling) for step in (0, 1)]
    assert (np.asarray(steps[0]) != np.asarray(steps[1])).any()


@hypothesis.given(st.lists(st.integers(-60, 60), min_size=9, max_size=9, unique=True), st.floats(0.01, 1.0))
@hypothesis.settings(deadline=None)
def test_a_nucleus_is_the_fewest_tokens_that_reach_top_p(tenths, top_p):
    logits = np.array(tenths, np.float32) / 10
    kept = np.isfinite(jax.jit(nucleus)(logits, np.float32(top_p)))
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    assert p[kept].min() >= p[~kept].max(initial=0)
    assert p[kept].sum() >= top_p - 1e-5 and p[kept].sum() - p[kept].min() < top_p + 1e-5


# Programs.


def test_prompts_of_any_length_share_a_few_programs():
    programs = decode_module._start, decode_module._continue
    before = [program._cache_size() for program in programs]
    rng = np.random.default_rng(3)
    for length in (1, 2, 63, 64, 65, 100, 127, 128, *rng.integers(1, 129, 12)):
        run([np.zeros(length, np.int32), np.zeros(7, np.int32)], max_new_tokens=2)
    after = [program._cache_size() for program in programs]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2]


def test_on_a_cpu_the_loop_does_not_scan_a_stack_of_weights(monkeypatch):
    """A scan would copy each layer's weights for every token. Elsewhere, and in large models, it stays."""
    _, cache = generate.prefill(CONFIG, lm.params, np.zeros((1, 4), np.int32), np.array([4]), FREQS, 8)
    one, none = np.zeros(1, np.int32), np.zeros(0, np.int32)
    state = (cache, None, one, one == 1, none, np.int32(0), np.int32(2), None)

    def scans():
        decode_module._continue.clear_cache()
        traced = decode_module._continue.trace(CONFIG, lm.params, *state)
        return str(traced.jaxpr).count(" scan[")

    assert scans() == 0
    with lowering_for("tpu"):
        assert scans() == 1
    monkeypatch.setattr(decoding_weights, "MOST", 0)
    assert scans() == 1
    decode_module._continue.clear_cache()


def test_a_bucket_is_near():
    buckets = [generate.bucket(n) for n in range(1, 10_001)]
    assert all(n <= b for n, b in enumerate(buckets, start=1)) and buckets == sorted(buckets)
    assert all(b <= 1.25 * n for n, b in enumerate(buckets, start=1) if n > 256)
    assert len(set(buckets[:4096])) == 20
    assert all(generate.bucket(b) == b for b in set(buckets))


def test_on_a_mesh(greedy):
    mesh = make_mesh(fsdp=2, tensor=2, sequence=2)
    there = Decoder(CONFIG, mesh=mesh)
    there = there.replace_params(jax.device_put(lm.params, there.shardings()))
    there = generate.generate(there, PROMPTS, FREQS, max_new_tokens=NEW)
    chex.assert_trees_all_equal(list(there.tokens), list(greedy.tokens))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": [[1], []]}, "prompt 1 must be one or more token ids"),
        ({"prompts": [[[1]]]}, r"prompt 0 must be .* got int64\[1, 1\]"),
        ({"prompts": [[1.5]]}, "prompt 0 must be .* got float64"),
        ({"prompts": [[1], [60, 61]]}, "prompt 1 has token 61, outside the vocabulary 0 … 60"),
        ({"prompts": [[-1, 2]]}, "prompt 0 has token -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"stop": "x"}, "stop strings are looked for in text; give decode="),
        ({"stop": ["x", ""], "decode": letters}, "stop must be strings of at least one character"),
        ({"eos_id": 61}, "eos_id must be in the vocabulary"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.1}, "top_p must be in"),
        ({"temperature": 1.0}, "sampling .* needs random numbers; give key="),
        ({"length": 79}, "prompt 1 of 40 tokens and 40 new ones make 80, more than the length 79"),
    ],
)
@unchecked()
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(**options)


def test_exactly_the_declared_length_is_fine(greedy):
    chex.assert_trees_all_equal(list(run(length=80).tokens), list(greedy.tokens))
