"""Attention over a cache against attention as it is written down, whatever the blocks and the lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax.model import attention
from resonance_jax.model import cached_attention as module
from resonance_jax.model.cached_attention import cached_attention
from resonance_jax.model.lowering import lowering_for

B, K, G, S, H, L = 3, 2, 2, 90, 8, 2
HELD = np.array([0, 40, 71], np.int32)


@pytest.mark.parametrize("window", [None, 1, 11, 200])
@pytest.mark.parametrize("T", [1, 19])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_block_and_window(x64, monkeypatch, dtype, T, window):
    """Blocks of 32 in 90 keys: the last overlaps. Queries 8 at a time: the last are padded."""
    monkeypatch.setattr(module, "_block", lambda S, bytes_per_key, scores: 32)
    monkeypatch.setattr(module, "QUERIES", 8)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, T, K * G, H)).astype(dtype)
    keys, values = rng.normal(size=(2, L, B, K, S, H)).astype(dtype)
    for layer in range(L):
        out = jax.jit(cached_attention, static_argnames=("window", "scale"))(
            q, keys, values, np.int32(layer), HELD, window=window, scale=0.7
        )
        k, v = (x[layer].swapaxes(1, 2) for x in (keys, values))
        expected = attention(
            *map(jnp.asarray, (q, k, v)), offset=HELD, window=window, scale=0.7, kernel="xla"
        )
        assert out.dtype == dtype
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_slots_that_hold_nothing_are_never_read():
    """What lies after a row's last token may be anything that is a number."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, 1, K, H)).astype(np.float32)
    keys, values = rng.normal(size=(2, L, B, K, S, H)).astype(np.float32)
    run = lambda: cached_attention(*map(jnp.array, (q, keys, values, 1, HELD)), window=None, scale=1.0)
    before = np.asarray(run())
    for row, held in enumerate(HELD):
        keys[:, row, :, held + 1 :] = values[:, row, :, held + 1 :] = 1e30
    np.testing.assert_array_equal(run(), before)


def test_a_block_suits_the_platform_that_the_program_is_for():
    """16 heads of 128 float32: a CPU reads 256 keys at a time, an accelerator all 4096."""
    q = jax.ShapeDtypeStruct((1, 1, 16, 128), jnp.float32)
    stack = jax.ShapeDtypeStruct((1, 1, 16, 4096, 128), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    held = jax.ShapeDtypeStruct((1,), jnp.int32)

    def scores():
        run = lambda *given: cached_attention(*given, window=None, scale=1.0)
        return str(jax.make_jaxpr(run)(q, stack, stack, number, held))

    assert "f32[1,16,1,256]" in scores() and "f32[1,16,1,4096]" not in scores()
    with lowering_for("tpu"):
        assert "f32[1,16,1,4096]" in scores()
