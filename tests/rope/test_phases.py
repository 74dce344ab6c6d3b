"""cos and sin in float32 at any position, and the rotation, against float64."""

import decimal
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_jax import rope
from resonance_jax.rope import phases

MILLION = 1 << 20
BASES = (1e3, 1e4, 5e5, 1e7)
ROTARY = (6, 16, 64, 80, 128, 256)
MAX_ERROR = 1e-6

jitted = jax.jit(rope.cos_sin)
in_float64 = jax.jit(lambda freqs, positions: rope.cos_sin(freqs, positions, jnp.float64))
rotated = jax.jit(rope.rotate, static_argnums=3)
stacked = jax.jit(jax.vmap(rope.cos_sin, in_axes=(0, None)))


def some_positions(count):
    """The first hundred, powers of two and their neighbours, a million, and random ones between."""
    edges = [p + d for e in range(7, 21) for p in [1 << e] for d in (-1, 0, 1)]
    picked = random.Random(0).sample(range(MILLION), count)
    return np.minimum(np.array([*range(100), *edges, *picked]), MILLION)


def stack(tables):
    """Frequencies of the same rotary size on a leading axis, attention factors set to one."""
    tables = [rope.Frequencies(f.step, f.wavelength, np.float32(1)) for f in tables]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *tables)


@pytest.mark.parametrize("rotary", ROTARY)
def test_exact_at_any_position(oracle, rotary):
    """Every method, with and without Resonance, at positions up to 1,048,576: |error| <= 1e-6."""
    positions = some_positions(160)
    tables, expected = [], []
    for base in BASES:
        for options in oracle.one_of_each(rotary, base):
            for resonance in (False, True):
                spec = rope.RopeSpec(resonance=resonance, **options)
                tables.append(rope.frequencies(spec, 32_768))
                theta, _ = oracle.rule(spec, 32_768)
                expected.append(oracle.angles(theta, positions, resonance))
    cos, sin = stacked(stack(tables), positions)
    assert cos.dtype == sin.dtype == jnp.float32
    expected = np.stack(expected)
    assert np.abs(cos - np.cos(expected)).max() <= MAX_ERROR
    assert np.abs(sin - np.sin(expected)).max() <= MAX_ERROR


def test_plain_float32_products_would_fail(oracle):
    """The bound means something: float32 position * inv_freq misses it a thousandfold."""
    freqs, positions = rope.frequencies(rope.RopeSpec(head_dim=128)), np.arange(32_000, 32_768)
    product = np.float32(positions)[:, None] * np.asarray(freqs.inv_freq)
    exact = oracle.angles(freqs.inv_freq64, positions, False)
    assert np.abs(np.cos(product) - np.cos(exact)).max() > 1000 * MAX_ERROR


def test_beyond_float64():
    """Positions near 2^31, against decimal arithmetic (a float64 product is off by 2e-7 there)."""
    freqs = rope.frequencies(rope.RopeSpec(method="linear", scale=8, head_dim=64))
    positions = [2**31 - 1, 2**30 + 12_345, 1_999_999_999]
    cos, sin = jitted(freqs, np.array(positions, np.int32))
    with decimal.localcontext(prec=60):
        turn = 2 * decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        for row, position in enumerate(positions):
            for pair in range(32):
                words = int(freqs.step[pair, 0]) << 32 | int(freqs.step[pair, 1])
                angle = float((decimal.Decimal(words) / 2**64 * position % 1) * turn)
                assert abs(cos[row, pair] - math.cos(angle)) <= MAX_ERROR
                assert abs(sin[row, pair] - math.sin(angle)) <= MAX_ERROR


def test_integer_wavelengths_near_two_to_the_31():
    whole = np.array([1, 2, 3, 6, 2**16 - 1, 2**16 + 1, 2**31 - 1, 2**31 - 2])
    freqs = rope.from_inv_freq(2 * math.pi / whole, 1.0, whole)
    assert freqs.wavelength.tolist() == whole.tolist()
    positions = np.array([0, 1, 5, 2**16, 2**30 - 1, 2**31 - 1])
    cos, sin = jitted(freqs, positions)
    angle = 2 * math.pi * ((positions[:, None] % whole) / whole)
    assert np.abs(cos - np.cos(angle)).max() <= MAX_ERROR
    assert np.abs(sin - np.sin(angle)).max() <= MAX_ERROR


def test_wavelengths_of_two_to_the_31_and_more():
    whole = np.array([2**31 - 1, 2**31, 2**40])
    freqs = rope.from_inv_freq(2 * math.pi / whole, 1.0, whole)
    assert freqs.wavelength.tolist() == [2**31 - 1, 0, 0]  # no modulo to take: no position gets there
    np.testing.assert_allclose(freqs.inv_freq64, 2 * math.pi / whole, rtol=1e-8)
    cos, _ = jitted(freqs, np.array([2**31 - 1]))
    np.testing.assert_allclose(cos[0], np.cos(2 * math.pi * (2**31 - 1) / whole), atol=1e-6)


def test_carry_into_the_high_word():
    """A fraction that rounds up to a whole 2^-32 of a turn."""
    turns = (6 - 2**-40) / 2**32
    inv_freq = next(
        x
        for x in np.nextafter(2 * math.pi * turns, [0, 1, 2 * math.pi * turns])
        if x / (2 * math.pi) == turns
    )
    assert rope.from_inv_freq([inv_freq]).step.tolist() == [[6, 0]]


WORDS = [
    0,
    1,
    5,
    2**16 - 1,
    2**16,
    2**30,
    2**31 - 1,
    *(random.Random(0).randrange(2**31) for _ in range(250)),
]


def test_high_product_is_exact():
    words = np.array([*WORDS, 2**31, 2**32 - 1], np.uint64)
    expected = words[:, None] * words >> np.uint64(32)
    a, b = np.broadcast_arrays(words.astype(np.uint32)[:, None], words.astype(np.uint32))
    np.testing.assert_array_equal(jax.jit(phases._high_product)(a, b), expected)


def test_modulo_is_exact():
    """Multiples of the period and their neighbours are where a quotient would be off by one."""
    rng = np.random.default_rng(0)
    period = np.array([2, 3, 6, 7, 54_410, *WORDS[3:], *rng.integers(2, 5000, 200)])
    high = rope.from_inv_freq(2 * math.pi / period, 1.0, period).step[:, 0]
    multiples = rng.integers(0, 2**31 // period + 1, (40, len(period))) * period
    count = np.concatenate(
        [multiples + near for near in (-1, 0, 1)] + [np.tile(np.array(WORDS)[:, None], len(period))]
    )
    count = np.clip(count, 0, 2**31).astype(np.uint32)
    period, high = (np.broadcast_to(x, count.shape).astype(np.uint32) for x in (period, high))
    np.testing.assert_array_equal(jax.jit(phases._modulo)(count, period, high), count % period)
    np.testing.assert_array_equal(phases._modulo(count, np.zeros_like(period), high), count)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 6.28), min_size=8, max_size=8),
    st.lists(st.integers(0, MILLION), min_size=8, max_size=8),
)
def test_any_table(inv_freq, positions):
    cos, sin = jitted(rope.from_inv_freq(inv_freq), np.array(positions))
    angle = np.array(positions)[:, None] * np.array(inv_freq)
    assert np.abs(cos - np.cos(angle)).max() <= MAX_ERROR
    assert np.abs(sin - np.sin(angle)).max() <= MAX_ERROR
    np.testing.assert_allclose(np.square(cos) + np.square(sin), 1, atol=1e-6)


def yarn(resonance=False, head_dim=64):
    return rope.frequencies(
        rope.RopeSpec(method="yarn", head_dim=head_dim, scale=8, train_length=512, resonance=resonance)
    )


@pytest.mark.parametrize("resonance", [False, True])
def test_negative_positions(resonance):
    """cos is even and sin odd, to the last bit."""
    freqs, positions = yarn(resonance), some_positions(50)
    cos, sin = jitted(freqs, positions)
    cos_back, sin_back = jitted(freqs, -positions)
    np.testing.assert_array_equal(cos, cos_back)
    np.testing.assert_array_equal(sin, -sin_back)


def test_position_zero():
    cos, sin = jitted(yarn(), np.zeros(1, np.int32))
    np.testing.assert_array_equal(cos, np.full((1, 32), np.float32(1 + 0.1 * math.log(8))))
    np.testing.assert_array_equal(sin, np.zeros((1, 32)))


def test_attention_factor_multiplies_both():
    freqs, positions = yarn(), np.arange(100)
    bare = rope.Frequencies(freqs.step, freqs.wavelength, np.float32(1))
    for with_factor, without in zip(jitted(freqs, positions), jitted(bare, positions), strict=True):
        np.testing.assert_array_equal(with_factor, without * freqs.attention_factor)


def test_jit_vmap_scan_agree():
    """One by one, in batches or all at once: the same bits (decoding sees what prefill did)."""
    freqs, positions = yarn(resonance=True), np.arange(4000, 4096)
    cos, sin = jitted(freqs, positions)
    _, one_by_one = jax.lax.scan(lambda _, p: (None, rope.cos_sin(freqs, p)), None, positions)
    mapped = jax.jit(jax.vmap(rope.cos_sin, in_axes=(None, 0)))(freqs, positions)
    batched = jitted(freqs, positions.reshape(2, 3, 16))
    for a, b, c, d in zip((cos, sin), one_by_one, mapped, batched, strict=True):
        assert a.shape == (96, 32) and d.shape == (2, 3, 16, 32)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(a, d.reshape(a.shape))


def test_stacked_frequencies_under_vmap():
    """Several encodings in one program give the bits that each gives alone, attention factors included."""
    tables = [yarn(), yarn(True), rope.frequencies(rope.RopeSpec(head_dim=64))]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *tables)
    cos, sin = stacked(together, np.arange(300))
    for row, freqs in enumerate(tables):
        alone = jitted(freqs, np.arange(300))
        np.testing.assert_array_equal(cos[row], alone[0])
        np.testing.assert_array_equal(sin[row], alone[1])
    with pytest.raises(ValueError, match="cos_sin takes one encoding; map over stacked Frequencies"):
        rope.cos_sin(together, np.arange(3))


def test_one_trace_serves_every_encoding():
    traces = []

    @jax.jit
    def program(freqs, positions):
        traces.append(1)
        return rope.cos_sin(freqs, positions)

    for freqs in (yarn(), yarn(True), rope.frequencies(rope.RopeSpec(head_dim=64, base=5e5))):
        program(freqs, np.arange(8))
    assert len(traces) == 1


def test_inv_freq_under_jit():
    freqs = yarn()
    np.testing.assert_array_equal(jax.jit(lambda f: f.inv_freq)(freqs), freqs.inv_freq)
    np.testing.assert_allclose(freqs.inv_freq, freqs.inv_freq64, rtol=3e-7)


def test_host_functions_refuse_tracers():
    freqs = yarn()
    for call in (
        lambda f: f.inv_freq64,
        rope.resonance,
        rope.fingerprint,
        lambda f: rope.critical_dimension(f, 64),
        lambda f: rope.feature_gap(f, 64, 128),
        lambda f: rope.same(f, f),
    ):
        with pytest.raises(ValueError, match="works on the host in float64; call it outside jit"):
            jax.jit(call)(freqs)


def test_positions_must_be_integers():
    with pytest.raises(ValueError, match=r"positions must be integers .* got float32"):
        rope.cos_sin(yarn(), np.array([0.5], np.float32))


def test_float64_when_asked(oracle, x64):
    """Under x64 the phases are right to float64's own rounding, so two programs can be held to 1e-9."""
    positions = some_positions(100)
    for resonance in (False, True):
        freqs = yarn(resonance)
        cos, sin = in_float64(freqs, positions)
        assert cos.dtype == sin.dtype == jnp.float64
        factor = np.float64(freqs.attention_factor)
        angle = oracle.angles(freqs.inv_freq64, positions, resonance)
        np.testing.assert_allclose(cos, factor * np.cos(angle), rtol=0, atol=1e-9)
        np.testing.assert_allclose(sin, factor * np.sin(angle), rtol=0, atol=1e-9)
        back = in_float64(freqs, -positions)
        np.testing.assert_array_equal(back[0], cos)
        np.testing.assert_array_equal(back[1], -sin)
        assert jitted(freqs, positions)[0].dtype == jnp.float32


def turned_by_hand(x, freqs, positions, layout):
    """Complex multiplication in float64, pair by pair."""
    x = np.asarray(x, np.float64)
    pairs = freqs.step.shape[0]
    turn = float(freqs.attention_factor) * np.exp(1j * np.outer(positions, freqs.inv_freq64))
    out = x.copy()
    for j in range(pairs):
        a, b = (j, j + pairs) if layout == "half" else (2 * j, 2 * j + 1)
        turned = (x[..., a] + 1j * x[..., b]) * turn[:, None, j]
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("head_dim", [64, 80])  # 80: a partial rotation, the last 16 dims pass untouched
def test_rotate(strict_dtypes, layout, head_dim):
    freqs, positions = yarn(), np.arange(1000, 1011)
    x = np.random.default_rng(0).normal(size=(2, 11, 3, head_dim)).astype(np.float32)
    cos, sin = jitted(freqs, positions)
    turned = rotated(jnp.asarray(x), cos, sin, layout)
    assert turned.dtype == jnp.float32
    np.testing.assert_allclose(turned, turned_by_hand(x, freqs, positions, layout), atol=6e-6)
    np.testing.assert_array_equal(turned[..., 64:], x[..., 64:])


def test_rotate_takes_a_table_per_row():
    """Positions [B, T] (packed documents) rotate each row by its own."""
    freqs = yarn()
    x = np.random.default_rng(0).normal(size=(2, 5, 1, 64)).astype(np.float32)
    positions = np.array([[0, 1, 2, 0, 1], [7, 8, 9, 10, 11]])
    turned = rotated(x, *jitted(freqs, positions))
    for row in range(2):
        alone = rotated(x[row], *jitted(freqs, positions[row]))
        np.testing.assert_array_equal(turned[row], alone)


def test_scores_depend_on_distance_alone():
    freqs, rng = yarn(), np.random.default_rng(0)
    q, k = (rng.normal(size=(1, 1, 64)).astype(np.float32) for _ in range(2))

    def score(m, n):
        turned = (rotated(x, *jitted(freqs, np.array([p]))) for x, p in ((q, m), (k, n)))
        return float(jnp.vdot(*turned))

    near = score(17, 3)
    assert abs(score(1_000_017, 1_000_003) - near) < 1e-4
    assert abs(score(18, 3) - near) > 1e-2


def test_dtype_rules(strict_dtypes):
    """bfloat16 is rotated in float32 and rounded once at the end."""
    freqs, positions = yarn(), np.arange(30_000, 30_008)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 64)), jnp.bfloat16)
    cos, sin = jitted(freqs, positions)
    turned = rotated(x, cos, sin)
    assert turned.dtype == jnp.bfloat16
    exact = rotated(x.astype(jnp.float32), cos, sin)
    assert bool((turned == exact.astype(jnp.bfloat16)).all())


def test_rotate_in_float64(strict_dtypes, x64):
    freqs, positions = yarn(), np.arange(1000, 1011)
    x = np.random.default_rng(0).normal(size=(11, 3, 64))
    turned = rotated(jnp.asarray(x), *in_float64(freqs, positions))
    assert turned.dtype == jnp.float64
    np.testing.assert_allclose(turned, turned_by_hand(x, freqs, positions, "half"), atol=1e-11)


def test_rotate_refuses():
    cos, sin = jitted(yarn(), np.arange(4))
    with pytest.raises(
        ValueError, match='unknown rotation layout \'meta\'; expected "half" or "interleaved"'
    ):
        rope.rotate(np.zeros((4, 1, 64), np.float32), cos, sin, "meta")
    with pytest.raises(ValueError, match="32 pairs do not fit a head of size 32"):
        rope.rotate(np.zeros((4, 1, 32), np.float32), cos, sin)


def test_strict_dtypes(strict_dtypes):
    freqs = yarn(True)
    for positions in (jnp.arange(8), jnp.arange(8, dtype=jnp.uint32), jnp.arange(8, dtype=jnp.int16)):
        assert jitted(freqs, positions)[0].dtype == jnp.float32
    assert freqs.inv_freq.dtype == jnp.float32
