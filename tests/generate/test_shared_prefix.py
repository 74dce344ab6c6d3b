"""What several prompts begin with is computed and held once, and changes no answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import generate, rope
from resonance_jax.generate import shared_prefix
from resonance_jax.generate.prefilling import go_on
from resonance_jax.model import Decoder, forward
from resonance_jax.model.cached_attention import Prefix, cached_attention
from tests.generate.small import CONFIG, HEAD, lively

FREQS = rope.frequencies(
    rope.RopeSpec("yarn", head_dim=HEAD, scale=8.0, train_length=16, resonance=True, base=100.0)
)
RNG = np.random.default_rng(0)
DOCUMENT = RNG.integers(0, 61, 150)
QUESTIONS = [np.concatenate([DOCUMENT, RNG.integers(0, 61, n)]) for n in (3, 40, 1, 17)]

lm = Decoder(CONFIG, params=lively(CONFIG))


def dense(q, k, v, positions, window, scale):
    """Softmax attention in float64 of each query over the keys up to its position."""
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("tnh,snh->nts", q, k) * scale
    key = np.arange(k.shape[0])
    seen = key <= positions[:, None]
    if window is not None:
        seen &= key > positions[:, None] - window
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("nts,snh->tnh", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("window", [None, 5, 60, 1000])
@pytest.mark.parametrize("T", [1, 7, 150])
def test_attention_over_a_prefix_and_own_keys_is_attention_over_both(window, T):
    """Two rows with 3 and 9 own tokens before, behind a prefix of 70 that is padded to 100."""
    rng = np.random.default_rng(T)
    P, S, held = 70, 200, jnp.array([3, 9], jnp.int32)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, keys, values = draw(2, T, 4, 8), draw(1, 2, 2, S, 8), draw(1, 2, 2, S, 8)
    prefix = Prefix(draw(1, 1, 2, 100, 8), draw(1, 1, 2, 100, 8), jnp.int32(P))
    out = cached_attention(q, keys, values, jnp.int32(0), held, window=window, scale=0.3, prefix=prefix)
    for row in range(2):
        k, v = (
            np.concatenate([shared[0, 0, :, :P], own[0, row]], axis=1).swapaxes(0, 1).astype(np.float64)
            for shared, own in ((prefix.keys, keys), (prefix.values, values))
        )
        expected = dense(np.float64(q[row]), k, v, P + int(held[row]) + np.arange(T), window, 0.3)
        np.testing.assert_allclose(out[row], expected, atol=2e-6)


@pytest.mark.parametrize("changes", [{}, {"window": 20}])
def test_logits_after_a_branch_are_those_of_a_whole_prompt(x64, changes):
    config = CONFIG.replace(dtype="float64", **changes)
    params = lively(config)
    freqs = FREQS
    tokens, lengths = np.zeros((4, 40), np.int32), np.array([len(q) - 150 for q in QUESTIONS])
    for row, question in zip(tokens, QUESTIONS, strict=True):
        row[: len(question) - 150] = question[150:]
    _, one = generate.prefill(config, params, DOCUMENT[None], np.array([150]), freqs, 192)
    scores, cache = go_on(config, params, tokens, lengths, one.branched(4, 64))
    # Whole prompts, and a token after each; what stands behind that is not seen.
    whole = np.zeros((4, 200), np.int32)
    for row, question in enumerate(QUESTIONS):
        whole[row, : len(question) + 1] = [*question, row + 1]
    logits = jax.jit(lambda ids: forward(config, params, ids, freqs))(whole)
    last = np.array([len(question) - 1 for question in QUESTIONS])
    np.testing.assert_allclose(scores, logits[np.arange(4), last], atol=1e-9)
    scores, _ = generate.decode_step(config, params, cache, jnp.array([1, 2, 3, 4]))
    np.testing.assert_allclose(scores, logits[np.arange(4), last + 1], atol=1e-9)


def test_generate_says_the_same_with_the_prefix_shared(monkeypatch):
    options = {"max_new_tokens": 30, "eos_id": 5}
    alone = [generate.generate(lm, [question], FREQS, **options) for question in QUESTIONS]
    sizes = []
    real = shared_prefix._held
    monkeypatch.setattr(shared_prefix, "_held", lambda *a: sizes.append(a[2].shape) or real(*a))
    together = generate.generate(lm, QUESTIONS, FREQS, **options)
    assert sizes == [(1, 192)]
    for one, row, reason in zip(alone, together.tokens, together.reasons, strict=True):
        np.testing.assert_array_equal(one.tokens[0], row)
        assert one.reasons[0] == reason
    shared = generate.share(lm, QUESTIONS, FREQS)
    for some in ((0, 2), (1,), (3, 1)):  # several batches go on from one prefix, which stays as it was
        rows = [QUESTIONS[i] for i in some]
        found = generate.generate(lm, rows, FREQS, shared=shared, **options)
        for i, row in zip(some, found.tokens, strict=True):
            np.testing.assert_array_equal(row, alone[i].tokens[0])
    assert len(sizes) == 2


def test_the_prefix_is_held_once():
    shared = generate.share(lm, QUESTIONS, FREQS)
    branch = shared.cache.branched(4, 64)
    L, _, K, _, H = branch.keys.shape
    assert branch.keys.shape == (L, 4, K, 64, H) and branch.prefix.keys.shape == (L, 1, K, 192, H)


def test_what_is_not_worth_it_is_not_shared():
    assert generate.share(lm, QUESTIONS[:1], FREQS) is None
    assert generate.share(lm, [q[140:] for q in QUESTIONS], FREQS) is None
    assert shared_prefix.common_length([DOCUMENT, DOCUMENT]) == 149  # a row keeps a token of its own
    assert shared_prefix.common_length([DOCUMENT, DOCUMENT[1:]]) <= 1


def test_turned_keys_of_a_branch_are_those_of_a_whole_cache():
    """rotate_to turns the prefix at its positions, and each row's own keys behind it."""
    other = rope.frequencies(rope.RopeSpec(head_dim=HEAD, base=100.0))
    shared = generate.share(lm, QUESTIONS, FREQS)
    tokens = QUESTIONS[1][150:][None]
    _, branch = go_on(lm.config, lm.params, tokens, np.array([40]), shared.cache.branched(1, 64))
    _, whole = generate.prefill(lm.config, lm.params, QUESTIONS[1][None], np.array([190]), FREQS, 192)
    turned, all_turned = branch.rotate_to(other), whole.rotate_to(other)
    np.testing.assert_allclose(turned.prefix.keys[:, 0, :, :150], all_turned.keys[:, 0, :, :150], atol=2e-5)
    np.testing.assert_allclose(turned.keys[:, 0, :, :40], all_turned.keys[:, 0, :, 150:190], atol=2e-5)


def test_bad_input_is_one_sentence():
    shared = generate.share(lm, QUESTIONS, FREQS)
    with pytest.raises(ValueError, match="prompt 1 does not go on from the 150 tokens"):
        generate.generate(lm, [QUESTIONS[0], QUESTIONS[1][1:]], FREQS, max_new_tokens=2, shared=shared)
    other = rope.frequencies(rope.RopeSpec(head_dim=HEAD))
    with pytest.raises(ValueError, match="made under another table"):
        generate.generate(lm, QUESTIONS, other, max_new_tokens=2, shared=shared)
    with pytest.raises(ValueError, match="rows branch from a cache of one row"):
        shared.cache.branched(2, 8).branched(2, 8)
