"""Attention over a cache against attention as it is written down, whatever the blocks and the lengths."""

import jax
import numpy as np
import pytest

from resonance_jax.model import attention
from resonance_jax.model import cached_attention as module
from resonance_jax.model.cached_attention import cached_attention

B, K, G, S, H, L = 3, 2, 2, 90, 8, 2
HELD = np.array([0, 40, 71], np.int32)


@pytest.mark.parametrize("window", [None, 1, 11, 200])
@pytest.mark.parametrize("T", [1, 19])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_block_and_window(x64, monkeypatch, dtype, T, window):
    """Blocks of 32 in 90 keys: the last overlaps. Queries 8 at a time: the last are padded."""
    monkeypatch.setattr(module, "_block", lambda S, bytes_a_key: 32)
    monkeypatch.setattr(module, "QUERIES", 8)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, T, K * G, H)).astype(dtype)
    keys, values = rng.normal(size=(2, L, B, K, S, H)).astype(dtype)
    for layer in range(L):
        out = jax.jit(cached_attention, static_argnames=("window", "scale"))(
            q, keys, values, np.int32(layer), HELD, window=window, scale=0.7
        )
        k, v = (x[layer].swapaxes(1, 2) for x in (keys, values))
        expected = attention(q, k, v, offset=HELD, window=window, scale=0.7, kernel="xla")
        assert out.dtype == dtype
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_slots_that_hold_nothing_are_never_read():
    """What lies after a row's last token may be anything that is a number."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, 1, K, H)).astype(np.float32)
    keys, values = rng.normal(size=(2, L, B, K, S, H)).astype(np.float32)
    run = lambda: cached_attention(q, keys, values, np.int32(1), HELD, window=None, scale=1.0)
    before = np.asarray(run())
    for row, held in enumerate(HELD):
        keys[:, row, :, held + 1 :] = values[:, row, :, held + 1 :] = 1e30
    np.testing.assert_array_equal(run(), before)
