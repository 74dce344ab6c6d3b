"""Rows over several devices: the same numbers as on one, any number of rows, weights copied once."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import evaluate, model, rope
from resonance_jax.evaluate import nll
from resonance_jax.parallel.pmap import over_devices, replicate

PARAMS = {"w": jnp.arange(12.0).reshape(4, 3), "deep": {"b": jnp.ones(3)}}


def affine(params, rows, factor):
    return factor * (rows @ params["w"]) + params["deep"]["b"][None]


@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_any_number_of_rows(count):
    rows = np.random.default_rng(0).integers(-9, 9, (count, 4)).astype(np.float32)  # exact sums
    wanted = affine(PARAMS, rows, 0.5)
    run = over_devices(affine)
    for params in (PARAMS, replicate(PARAMS)):
        np.testing.assert_array_equal(run(params, rows, np.float32(0.5)), wanted)


def test_replicated_weights_are_on_every_device_and_stay_there():
    """A copy from device to device is an error inside: plain weights need one in their first call alone."""
    rows, factor = np.ones((16, 4), np.float32), np.float32(1)
    run, there = over_devices(affine), replicate(PARAMS)
    for leaf, again in zip(*map(jax.tree.leaves, (there, replicate(there))), strict=True):
        assert len(leaf.sharding.device_set) == 8 and leaf.sharding.is_fully_replicated
        pointers = (
            [part.data.unsafe_buffer_pointer() for part in x.addressable_shards] for x in (leaf, again)
        )
        assert len({tuple(sorted(each)) for each in pointers}) == 1
    wanted = run(there, rows, factor)
    guarded = functools.partial(jax.transfer_guard_device_to_device, "disallow_explicit")
    with guarded():
        np.testing.assert_array_equal(run(there, rows, factor), wanted)
        with pytest.raises(Exception, match="Disallowed device-to-device transfer"):
            run(PARAMS, rows, factor)
    np.testing.assert_array_equal(run(PARAMS, rows, factor), wanted)
    with guarded():
        np.testing.assert_array_equal(run(PARAMS, rows, factor), wanted)


def test_the_copies_follow_the_weights_and_go_with_them():
    copies = lambda: sum(x.shape == (4, 3) and len(x.sharding.device_set) == 8 for x in jax.live_arrays())
    gc.collect()
    before = copies()
    rows, factor, run = np.ones((8, 4), np.float32), np.float32(1), over_devices(affine)
    first = jax.tree.map(lambda x: x + 1, PARAMS)
    np.testing.assert_array_equal(run(first, rows, factor), affine(first, rows, factor))
    held = weakref.ref(first["w"])
    second = jax.tree.map(lambda x: x + 2, PARAMS)
    np.testing.assert_array_equal(run(second, rows, factor), affine(second, rows, factor))
    assert copies() == before + 1
    changing = jax.tree.map(np.array, PARAMS)
    for _ in range(2):  # NumPy's may change in place
        changing["w"] += 1
        np.testing.assert_array_equal(run(changing, rows, factor), affine(changing, rows, factor))
    there = replicate(first)
    run(there, rows, factor)
    again = weakref.ref(there["w"])
    del first, there
    gc.collect()
    assert held() is again() is None
    del second
    gc.collect()
    assert copies() == before


def test_an_evaluation_copies_the_weights_once(monkeypatch):
    """However many documents and lengths: all calls read the same buffers."""
    config = model.PRESETS["tiny"].replace(vocab_size=64, d_model=32, head_dim=16, d_ff=48, n_layers=1)
    lm = model.Decoder(config, jax.random.key(0))
    spec = rope.RopeSpec("dynamic_ntk", head_dim=16, train_length=16)
    documents = [np.random.default_rng(0).integers(0, 64, 70)] * 3
    seen, real = [], nll.over_devices

    def spied(fn):
        run = real(fn)

        def noting(params, *rest):
            parts = params["layers"]["q"].addressable_shards
            seen.append(tuple(part.data.unsafe_buffer_pointer() for part in parts))
            return run(params, *rest)

        return noting

    monkeypatch.setattr(nll, "over_devices", spied)
    nll._nll_by_pmap.cache_clear()
    evaluate.sweep(lm, documents, spec, [16, 32], "sliding", stride=8, pmap=True)
    nll._nll_by_pmap.cache_clear()
    assert len(seen) >= 2 and len(seen[0]) == 8 and len(set(seen)) == 1
