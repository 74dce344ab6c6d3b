"""The XLA path against loops in float64; the choice of kernels; a query that sees nothing; refusals."""

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax.model.kernel_choice import Request, attention, choose, lowering_for, on_this_machine
from tests.unchecked import unchecked


def oracle(q, k, v, visible, scale):
    """Attention by definition, one query of one head at a time; visible is bool[B, T, S]."""
    B, T, N, _ = q.shape
    group = N // k.shape[2]
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        keys = np.flatnonzero(visible[b, t])
        if len(keys):
            scores = scale * k[b, keys, n // group] @ q[b, t, n]
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, keys, n // group] / weights.sum()
    return out


def inputs(B, T, N, K, H, S=None):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((B, t, n, H)) for t, n in ((T, N), (S or T, K), (S or T, K))]


def sees(T, S, offset, window=None):
    back = np.asarray(offset).reshape(-1, 1, 1) + np.arange(T)[:, None] - np.arange(S)
    return (back >= 0) & (back < (window or S + T))


IDS = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 1]], np.int32)
KEY_IDS = np.array([[0, 1, 1, 3, 3], [5, 0, 0, 0, 1]], np.int32)

CASES = {
    "grouped": (7, 7, {}, sees(7, 7, 0)),
    "window": (7, 7, dict(window=3), sees(7, 7, 0, 3)),
    "aligned to the end": (3, 7, {}, sees(3, 7, 4)),
    "aligned to the start": (3, 7, dict(offset=0), sees(3, 7, 0)),
    "before the first key": (7, 4, dict(offset=-2), sees(7, 4, -2)),
    "an offset a row": (2, 7, dict(offset=jnp.array([1, 4])), sees(2, 7, [1, 4])),
    "every key": (4, 7, dict(causal=False, scale=1.0), np.ones((1, 4, 7), bool)),
    "segments": (7, 7, dict(segment_ids=IDS), sees(7, 7, 0) & (IDS[:, :, None] == IDS[:, None])),
    "segments of the keys": (
        7,
        5,
        dict(segment_ids=IDS, kv_segment_ids=KEY_IDS, causal=False),
        IDS[:, :, None] == KEY_IDS[:, None],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_attention_by_definition(x64, name):
    T, S, options, visible = CASES[name]
    given = inputs(2, T, 6, 2, 8, S)
    wanted = oracle(*given, np.broadcast_to(visible, (2, T, S)), options.get("scale", 8**-0.5))
    with jax.numpy_dtype_promotion("strict"):
        got = attention(*map(jnp.asarray, given), **options)
    np.testing.assert_allclose(got, wanted, atol=1e-13)


@pytest.mark.parity
def test_the_window_is_hugging_face_s():
    """One-hot values show the weights: a key is seen where transformers' mask says so."""
    masking = pytest.importorskip("transformers.masking_utils")
    within = masking.sliding_window_overlay(4)
    wanted = [[s <= t and within(0, 0, t, s) for s in range(9)] for t in range(9)]
    ones = jnp.ones((1, 9, 1, 9))
    got = attention(ones, ones, jnp.eye(9)[None, :, None], window=4)
    np.testing.assert_array_equal(got[0, :, 0] > 0, wanted)


def test_decoding_with_a_cache_is_the_last_row():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in inputs(2, 6, 4, 2, 8))
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=jnp.nan)
    cached = lambda offset: attention(
        q[:, 4:5], pad(k).at[:, 6:].set(9.0), pad(v).at[:, 6:].set(9.0), offset=offset
    )
    wanted = attention(q, k, v)[:, 4:5]
    np.testing.assert_allclose(jax.jit(cached)(jnp.int32(4)), wanted, atol=1e-6)


@pytest.mark.parametrize("kernel", ["xla", "block_pairs"])
def test_a_query_without_keys_gives_zeros_and_no_gradient(kernel):
    q, k, v = (jnp.asarray(x, jnp.float32) for x in inputs(1, 7, 2, 1, 8, 4))
    run = lambda q, k, v: attention(q, k, v, offset=-2, kernel=kernel)
    out, vjp = jax.vjp(run, q, k, v)
    gradients = vjp(jnp.ones_like(out))
    assert not out[:, :2].any() and out[:, 2:].all()
    assert not gradients[0][:, :2].any()
    assert all(np.isfinite(g).all() for g in gradients)


def test_dropout_drops_weights_and_keeps_their_mean():
    ones = jnp.ones((1, 64, 2, 8))
    values = jnp.ones((1, 64, 2, 8))
    run = lambda key: attention(ones, ones, values, causal=False, dropout=0.25, key=key)
    out = run(jax.random.key(0))
    assert 0.9 < out.mean() < 1.1 and out.std() > 0.01
    np.testing.assert_array_equal(out, run(jax.random.key(0)))
    assert (out != run(jax.random.key(1))).any()


def request(platform="cpu", capability=None, dtype="bfloat16", T=4096, S=4096, H=128, **options):
    return Request(platform, capability, dtype, T, S, H, **options)


H100, T4 = dict(platform="gpu", capability=(9, 0)), dict(platform="gpu", capability=(7, 5))
TPU = dict(platform="tpu")


@pytest.mark.parametrize(
    "asked, kernel, why",
    [
        (request(), "block_pairs", "no fused kernel on cpu"),
        (request(T=64, S=64), "xla", "short"),
        (request(T=1, S=100_000), "xla", "short"),
        (request(dropout=True), "xla", "dropout"),
        (request(offset=None), "xla", "offset"),
        (request(**H100), "cudnn", "fused"),
        (request(**H100, window=100), "cudnn", "fused"),
        (request(**H100, dtype="float32"), "block_pairs", "not float32"),
        (request(**H100, segments="shared"), "block_pairs", "segments"),
        (request(**H100, T=1024, offset=3072), "block_pairs", "offset 0"),
        (request(**H100, H=256), "cudnn", "fused"),
        (request(platform="gpu", capability=(8, 0), H=256), "block_pairs", "up to 128"),
        (request(**T4, dtype="float16"), "block_pairs", "8.0 or newer"),
        (request(**TPU), "splash", "fused"),
        (request(**TPU, segments="shared"), "splash", "fused"),
        (request(**TPU, segments="own"), "block_pairs", "share"),
        (request(**TPU, T=1024, offset=3072, window=100), "splash", "fused"),
        (request(**TPU, offset=-1), "block_pairs", "at least one key"),
        (request(**TPU, dtype="float64"), "block_pairs", "not float64"),
        (request(**TPU, dtype="float32", precision="float32"), "splash", "fused"),
        (request(**TPU, dtype="float32", precision="tensorfloat32"), "block_pairs", "as tensorfloat32"),
        (request(**TPU, precision="bfloat16"), "splash", "fused"),
        (request(**TPU, precision="float32"), "block_pairs", "bfloat16 numbers as float32"),
    ],
)
def test_the_choice(asked, kernel, why):
    name, reason = choose(asked)
    assert name == kernel and why in reason


@pytest.mark.parametrize(
    "asked, kernel, why",
    [
        (request(), "cudnn", "compute capability 8.0"),
        (request(), "splash", "a TPU"),
        (request(dropout=True), "block_pairs", "drop"),
        (request(offset=None), "block_pairs", "an int"),
        (request(), "flash", "not one of auto, xla"),
    ],
)
def test_a_forced_kernel_that_cannot_says_why(asked, kernel, why):
    with pytest.raises(ValueError, match=why):
        choose(asked, kernel)


def test_a_forced_kernel_runs():
    assert choose(request(T=8, S=8), "block_pairs") == ("block_pairs", "asked for")


def test_a_choice_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(sys.modules[attention.__module__], "_reported", set())
    x = jnp.ones((1, 8, 1, 4))
    with caplog.at_level(logging.INFO, logger="resonance_jax"):
        attention(x, x, x)
        attention(x, x, x)
        attention(x, x, x, kernel="block_pairs")
    assert [record.getMessage()[:23] for record in caplog.records] == [
        "attention: xla (short: ",
        "attention: block_pairs ",
    ]


def test_lowering_for_another_platform_changes_the_choice():
    x = jnp.ones((1, 8, 1, 4))
    with lowering_for("tpu"), pytest.raises(ValueError, match="compute capability"):
        attention(x, x, x, kernel="cudnn")
    with pytest.raises(ValueError, match="needs a TPU"):
        attention(x, x, x, kernel="splash")


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(k=jnp.ones((1, 8, 3, 4)), v=jnp.ones((1, 8, 3, 4))), "N a multiple of K"),
        (dict(v=jnp.ones((1, 7, 2, 4))), "expected q"),
        (dict(q=jnp.ones((8, 2, 4))), "expected q"),
        (dict(q=jnp.ones((1, 8, 2, 4), jnp.bfloat16)), "share a dtype"),
        (dict(window=0), "at least 1"),
        (dict(window=3, causal=False), "causal"),
        (dict(segment_ids=jnp.zeros((1, 7), jnp.int32)), "expected segment_ids"),
        (dict(kv_segment_ids=jnp.zeros((1, 8), jnp.int32)), "needs segment_ids"),
        (dict(dropout=0.1), "comes with a key"),
        (dict(dropout=1.0, key=jax.random.key(0)), r"in \[0, 1\)"),
    ],
)
@unchecked()
def test_bad_input_is_refused(change, why):
    x = jnp.ones((1, 8, 2, 4))
    given = dict(q=x, k=x, v=x) | change
    with pytest.raises(ValueError, match=why):
        attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)


@pytest.mark.parametrize(
    ("target", "dtype", "kernel", "why"),
    [
        (("cpu",), "float32", "block_pairs", "no fused kernel on cpu"),
        (("gpu", (7, 5)), "float32", "block_pairs", "compute capability 8.0 or newer"),
        (("gpu", (9, 0)), "bfloat16", "cudnn", "fused kernel of this gpu"),
        (("tpu",), "bfloat16", "splash", "fused kernel of this tpu"),
    ],
)
def test_what_suits_a_machine(target, dtype, kernel, why):
    """A T4 gets float32 and block pairs, and is told why."""
    with lowering_for(*target):
        choice = on_this_machine()
    assert (choice.dtype, choice.kernel) == (dtype, kernel) and why in choice.reason
