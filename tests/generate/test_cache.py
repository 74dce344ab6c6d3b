"""Decoding is prefilling: for every encoding, past the training length, and across a change of table."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.generate import decode_step, empty, prefill, prefilling
from resonance_jax.model import Decoder, LayerType, forward, hidden_states
from tests.generate.small import CONFIG, HEAD, SPECS, T5, TRAINED, lively, title

LENGTH, PROMPT, STEPS = 48, 18, 30
LENGTHS = np.array([4, 17, 13], np.int32)  # rows cross the training length before and after the prompt's end
TOKENS = np.random.default_rng(0).integers(0, 61, (3, LENGTH)).astype(np.int32)
FED = np.stack([TOKENS[range(3), LENGTHS + i] for i in range(STEPS)])
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
PLAIN = rope.frequencies(rope.RopeSpec(head_dim=HEAD, base=100.0))


@chex.assert_max_traces(n=5)  # one a config, however many encodings
def decoded(config, params, freqs, later):
    """Logits [1 + STEPS, B, V] of prefilling ragged prompts under `freqs`, then of feeding what follows one
    by one under `later`."""
    first, cache = prefill(config, params, TOKENS[:, :PROMPT], LENGTHS, freqs, LENGTH)

    def step(cache, tokens):
        logits, cache = decode_step(config, params, cache, tokens)
        return cache, logits

    _, logits = jax.lax.scan(step, cache.rotate_to(later), FED)
    return jnp.concatenate([first[None], logits])


run = jax.jit(decoded, static_argnums=0)
full = jax.jit(forward, static_argnums=0)


def where_decoded(logits):
    """Of a full forward's logits [B, T, V], those that decoding gives, [1 + STEPS, B, V]."""
    at = LENGTHS - 1 + np.arange(1 + STEPS)[:, None]
    return np.asarray(logits)[np.arange(3), at]


def assert_close(config, ours, theirs):
    assert ours.dtype == np.promote_types(config.dtype, np.float32)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[config.dtype], err_msg=f"step {step}")


def check(config, spec):
    params, freqs = lively(config), rope.frequencies(spec, length=LENGTH)
    assert_close(
        config, run(config, params, freqs, freqs), where_decoded(full(config, params, TOKENS, freqs))
    )


@pytest.mark.parametrize("spec", SPECS, ids=title)
def test_every_encoding(spec):
    check(CONFIG, spec)


@pytest.mark.parametrize("spec", SPECS, ids=title)
def test_every_encoding_in_float64(x64, spec):
    check(CONFIG.replace(dtype="float64"), spec)


def test_the_other_shapes():
    """Interleaved pairs, one key head, a window, scores that are not scaled, a tied head that is."""
    check(T5.replace(n_kv_heads=1, window=7, kernel="block_pairs"), SPECS[-1])


MIXED = CONFIG.replace(
    n_layers=5,
    dtype="float64",
    layer_types=(LayerType("sliding_attention", 7), LayerType("bare", rope=False), LayerType()),
)
LOCAL = rope.RopeSpec(head_dim=HEAD, base=30.0)


def test_layers_of_several_types(x64):
    """A window, a layer without RoPE and two tables, in a pattern and in what is left of it."""
    check(MIXED, rope.LayerSpecs({"full_attention": SPECS[-1], rope.SLIDING: LOCAL}))


def test_keys_of_several_types_are_turned_under_their_own_tables(x64):
    """Of the first layers of each type no key depends on the table of another position."""
    config = MIXED.replace(n_layers=3)
    params = lively(config)
    specs = rope.LayerSpecs({"full_attention": SPECS[0], rope.SLIDING: LOCAL})
    before = rope.frequencies(specs, length=LENGTH)
    after = {name: rope.frequencies(SPECS[-2], length=LENGTH) for name in before}
    fresh = jax.jit(lambda freqs: prefill(config, params, TOKENS[:, :PROMPT], LENGTHS, freqs, LENGTH)[1])
    turned, back = fresh(before).rotate_to(after), fresh(before).rotate_to(after).rotate_to(before)
    assert rope.same(turned.freqs, after)
    held = np.arange(LENGTH) < 4
    np.testing.assert_allclose(turned.keys[0][:, :, held], fresh(after).keys[0][:, :, held], atol=1e-12)
    np.testing.assert_array_equal(turned.keys[1], fresh(before).keys[1])
    assert np.abs(turned.keys[2] - fresh(before).keys[2])[:, :, held].max() > 1e-2
    np.testing.assert_allclose(back.keys[:, :, :, held], fresh(before).keys[:, :, :, held], atol=1e-12)
    one = fresh(before).rotate_to(before["full_attention"])  # one table for both
    np.testing.assert_array_equal(one.keys[1], fresh(before).keys[1])
    for freqs, message in (
        ({"full_attention": PLAIN}, "give one for each"),
        ({**before, "bare": PLAIN}, "give one for each"),
    ):
        with pytest.raises(ValueError, match=message):
            turned.rotate_to(freqs)
    with pytest.raises(ValueError, match="another table"):
        turned.check(config, TOKENS[:, :1], before)
    with pytest.raises(ValueError, match="other layer types"):
        turned.check(config.replace(layer_types=config.layer_types[::-1]), TOKENS[:, :1], after)
    turned.check(config, TOKENS[:, :1], after)


@pytest.mark.parametrize("B", [6, 5])  # two rows at a time: three parts, of five rows the last one overlaps
def test_many_rows_go_through_the_decoder_a_few_at_a_time(monkeypatch, B):
    params, lengths = lively(CONFIG), np.arange(6, 6 + B)
    tokens = np.random.default_rng(1).integers(0, 61, (B, 12)).astype(np.int32)
    at_once, a_few = (jax.jit(lambda *args: prefill(CONFIG, *args, PLAIN, 20)) for _ in range(2))
    logits, cache = at_once(params, tokens, lengths)
    monkeypatch.setattr(prefilling, "TOKENS_AT_ONCE", 35)  # two rows
    few_logits, few = a_few(params, tokens, lengths)
    np.testing.assert_allclose(few_logits, logits, rtol=0, atol=TOLERANCE["float32"])
    chex.assert_trees_all_close(few, cache, rtol=0, atol=TOLERANCE["float32"])
    with pytest.raises(ValueError, match="room for 8"):
        prefill(CONFIG, params, tokens, lengths, PLAIN, 8)


@pytest.mark.parametrize(
    ("B", "T", "rows"), [(13, 1024, 7), (16, 1024, 8), (7, 8192, 1), (3, 9000, 1), (2, 1, 2)]
)
def test_rows_at_once_need_not_divide_the_batch(B, T, rows):
    """As many as fit TOKENS_AT_ONCE, in parts of about the same size."""
    assert prefilling._rows_at_once(B, T) == rows


# Another table.


def tables_of(spec):
    """What a conversation begins under, and what it goes on under."""
    before = rope.frequencies(spec, length=TRAINED) if spec.dynamic else PLAIN
    return before, rope.frequencies(spec, length=LENGTH)


ONE_LAYER = CONFIG.replace(n_layers=1)


@pytest.mark.parametrize("spec", SPECS, ids=title)
def test_rotated_keys_are_a_prefill_under_the_new_table(spec):
    """One layer, whose keys depend on no attention: all that a cache of keys can promise."""
    before, after = tables_of(spec)
    params = lively(ONE_LAYER)
    expected = where_decoded(full(ONE_LAYER, params, TOKENS, after))[1:]
    assert_close(ONE_LAYER, run(ONE_LAYER, params, before, after)[1:], expected)
    if not rope.same(before, after):
        assert np.abs(run(ONE_LAYER, params, before, before)[1:] - expected).max() > 1e-2


def unrotated_cache(config, params, tokens, prompt, before, after):
    """A float64 oracle: keys kept unrotated, and all of them rotated anew under the table of every step.
    Logits [T, V] of a row whose first `prompt` tokens come under `before`, the others under `after`."""
    c, params = config, jax.tree.map(np.asarray, params)
    norm = lambda x, scale: x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * scale
    G, kept, logits = c.n_heads // c.n_kv_heads, [([], []) for _ in range(c.n_layers)], []

    def turn(x, positions, freqs):
        angle = np.asarray(positions)[:, None, None] * freqs.inv_freq64
        cos, sin = (float(freqs.attention_factor) * f(angle) for f in (np.cos, np.sin))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    for t, token in enumerate(tokens):
        freqs, x = (before if t < prompt else after), params["embed"][token]
        for layer, (keys, values) in enumerate(kept):
            p = {name: value[layer] for name, value in params["layers"].items()}
            h = norm(x, p["attn_norm"])
            keys.append((h @ p["k"]).reshape(c.n_kv_heads, HEAD))
            values.append((h @ p["v"]).reshape(c.n_kv_heads, HEAD))
            q = turn((h @ p["q"]).reshape(1, c.n_heads, HEAD), [t], freqs)[0]
            k = np.repeat(turn(np.array(keys), range(t + 1), freqs), G, axis=1)
            scores = np.exp(np.einsum("nh,snh->ns", q, k) / np.sqrt(HEAD))
            weights = scores / scores.sum(axis=1, keepdims=True)
            out = np.einsum("ns,snh->nh", weights, np.repeat(np.array(values), G, axis=1))
            x = x + out.reshape(-1) @ p["o"]
            h = norm(x, p["mlp_norm"])
            gate = h @ p["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ p["up"])) @ p["down"]
        logits.append(norm(x, params["final_norm"]) @ params["head"])
    return np.array(logits)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.dynamic], ids=title)
def test_rotate_to_is_a_cache_of_unrotated_keys(x64, spec):
    """Every layer: longrope's switch, and dynamic methods that outgrow their declared length."""
    config = CONFIG.replace(dtype="float64")
    params, tables = lively(config), tables_of(spec)
    ours = run(config, params, *tables)
    expected = [unrotated_cache(config, params, *row, *tables) for row in zip(TOKENS, LENGTHS, strict=True)]
    assert_close(config, ours, where_decoded(expected))


def turned_keys(cache, freqs, after):
    """Random keys of a cache's shape, rotated under a table, turned by the cache to another, and what they
    should be then."""
    keys = np.random.default_rng(0).normal(size=cache.keys.shape).astype(cache.keys.dtype).swapaxes(2, 3)
    positions = np.arange(cache.capacity)

    @jax.jit
    def under(table):
        return rope.rotate(keys, *rope.cos_sin(table, positions, keys.dtype), cache.layout)

    cache = dataclasses.replace(cache, keys=under(freqs).swapaxes(2, 3), freqs=freqs)
    return cache.keys, cache.rotate_to(after).keys, under(after).swapaxes(2, 3)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_tables_that_rotate_fewer_dims(x64, layout):
    half = rope.frequencies(rope.RopeSpec(head_dim=HEAD, base=50.0, partial_rotary_factor=0.5))
    whole = rope.frequencies(rope.RopeSpec("yarn", head_dim=HEAD, scale=4.0, train_length=TRAINED))
    cache = empty(CONFIG.replace(dtype="float64", rope_layout=layout), 2, LENGTH, whole)
    for before, after in ((half, whole), (whole, half)):
        _, ours, expected = turned_keys(cache, before, after)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_far_keys_turn_as_exactly_as_near_ones():
    """Phases, not angles in float32, at position 100,000."""
    spec = rope.RopeSpec("dynamic_yarn", head_dim=HEAD, train_length=4096)
    before, after = (rope.frequencies(spec, length=n) for n in (8192, 100_000))
    cache = empty(ONE_LAYER.replace(n_kv_heads=1), 1, 100_000, before)
    stale, ours, expected = (np.asarray(x)[..., -1000:, :] for x in turned_keys(cache, before, after))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-6)
    assert np.abs(stale - expected).max() > 1


def test_bfloat16_keys_lose_one_rounding():
    before, after = tables_of(SPECS[6])
    cache = empty(CONFIG.replace(dtype="bfloat16"), 2, LENGTH, before)
    _, ours, expected = turned_keys(cache, before, after)
    assert ours.dtype == expected.dtype == jnp.bfloat16
    ours, expected = (np.asarray(x, np.float32) for x in (ours, expected))
    assert 2**-9 < np.abs(ours - expected).max() / np.abs(expected).max() < 2**-7


# The decoder's argument.


@pytest.fixture(scope="module")
def lm():
    return Decoder(CONFIG, params=lively(CONFIG))


def test_turns_of_a_conversation(lm):
    """Any cut of a text gives the logits of the whole; a cache can be gone on from twice."""
    whole = np.asarray(lm(TOKENS, PLAIN))
    first, cache = lm(TOKENS[:, :20], PLAIN, cache=empty(CONFIG, 3, LENGTH, PLAIN))
    for _ in range(2):
        second, longer = lm(TOKENS[:, 20:], PLAIN, cache=cache)
        logits = np.concatenate([first, second], axis=1)
        np.testing.assert_allclose(logits, whole, rtol=0, atol=TOLERANCE["float32"])
    assert longer.lengths.tolist() == [LENGTH] * 3 and cache.lengths.tolist() == [20] * 3


def test_another_table_is_refused_until_the_keys_are_turned(lm):
    other = rope.frequencies(SPECS[0], length=LENGTH)
    assert rope.same(other, PLAIN)  # the same numbers are the same table
    _, cache = lm(TOKENS[:, :20], PLAIN, cache=empty(CONFIG, 3, LENGTH, PLAIN))
    lm(TOKENS[:, 20:], other, cache=cache)
    for other in (rope.resonance(PLAIN), rope.frequencies(SPECS[8], length=LENGTH)):
        with pytest.raises(ValueError, match=r"another table; turn them with cache\.rotate_to\(freqs\)"):
            lm(TOKENS[:, 20:], other, cache=cache)
        with pytest.raises(ValueError, match="another table"):
            hidden_states(CONFIG, lm.params, TOKENS[:, 20:], other, cache=cache)
        lm(TOKENS[:, 20:], other, cache=cache.rotate_to(other))
    # Under jit tables have no values to compare: the cache's own is used.
    logits, _ = full(CONFIG, lm.params, TOKENS[:, 20:], other, cache=cache)
    np.testing.assert_array_equal(logits, lm(TOKENS[:, 20:], PLAIN, cache=cache)[0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda lm, c: lm(TOKENS[:2, :4], PLAIN, cache=c), r"ask for \[3, 2, 2, 8, 8\] and 'half'"),
        (lambda lm, c: lm(TOKENS[:, :9], PLAIN, cache=c), "holds 0 tokens and would take 9 .* room for 8"),
        (
            lambda lm, c: lm(TOKENS[:, :5], PLAIN, cache=c.advanced(4)),
            "holds 4 tokens and would take 5 more",
        ),
        (lambda lm, c: lm(TOKENS[:, :4], PLAIN, np.arange(4), cache=c), "leave positions, segment_ids and"),
        (lambda lm, c: prefill(CONFIG, lm.params, TOKENS, LENGTHS, PLAIN, 8), "room for 8"),
        (lambda lm, c: empty(CONFIG, 0, 8, PLAIN), "at least 1 row"),
        (
            lambda lm, c: c.rotate_to(rope.frequencies(rope.RopeSpec(head_dim=16))),
            "rotates 16 dims, but a head has 8",
        ),
        (
            lambda lm, c: lm(TOKENS[:, :4], PLAIN, cache=dataclasses.replace(c, layout="interleaved")),
            "'interleaved' pairs",
        ),
    ],
)
def test_bad_input_is_one_sentence(lm, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(lm, empty(CONFIG, 3, 8, PLAIN))


def test_a_row_that_outgrows_the_cache_says_so_under_jit(lm):
    """Lengths have no values there, so that the row's logits say it: NaN, and nobody else's."""
    lengths = np.array([8, 3, 7])
    _, cache = jax.jit(prefill, static_argnums=(0, 5))(CONFIG, lm.params, TOKENS[:, :8], lengths, PLAIN, 8)
    logits, _ = jax.jit(decode_step, static_argnums=0)(CONFIG, lm.params, cache, TOKENS[:, 8])
    assert np.isnan(logits).all(axis=1).tolist() == [True, False, False]
    assert np.isfinite(logits[1:]).all()


def test_the_cache_is_written_in_place(lm):
    """Nothing as large as the cache, or as one of its layers, is copied in a step."""
    shapes = jax.eval_shape(lambda: empty(CONFIG, 3, 65_536, PLAIN).advanced(100))
    step = jax.jit(decode_step, static_argnums=0, donate_argnums=2)
    memory = step.lower(CONFIG, lm.params, shapes, TOKENS[:, 0]).compile().memory_analysis()
    stacks = 2 * shapes.keys.size * 4
    assert memory.alias_size_in_bytes >= stacks
    assert memory.temp_size_in_bytes < stacks / CONFIG.n_layers / 2
