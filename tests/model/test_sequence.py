"""Attention over a cut time equals attention over a whole one, and every device does the same work."""

import jax
import numpy as np
import pytest

from resonance_jax.model.kernel_choice import attention as whole
from resonance_jax.model.sequence import _chunks, _exchange, attention
from resonance_jax.parallel.mesh import make_mesh, sharding

IDS = np.repeat(np.arange(4, dtype=np.int32), [5, 20, 7, 32])[None].repeat(2, 0)


@pytest.mark.parametrize("sizes", [dict(sequence=8), dict(data=2, tensor=2, sequence=2)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"kernel": "block_pairs"}, {"kernel": "xla", "window": 9, "scale": 0.3}, {"segment_ids": IDS}],
    ids=["plain", "window", "segments"],
)
def test_values_and_gradients(sizes, options):
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((2, 64, n, 8)).astype(np.float32) for n in (4, 2, 2, 4))

    def both(attend, *given):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, **options), *given)
        return out, back(g)

    want = both(whole, q, k, v)
    mesh = make_mesh(**sizes)
    given = [jax.device_put(x, sharding(mesh, ("batch", "time", "heads", None), x.shape)) for x in (q, k, v)]
    got = jax.jit(lambda *given: both(attention, *given))(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, want)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 8])
def test_halves_change_places_for_equal_work(shards):
    held = {}
    for second, pairs in enumerate(_exchange(shards)):
        assert sorted(to for _, to in pairs) == list(range(shards))
        for source, to in pairs:
            held.setdefault(to, []).append(2 * source + second)
    for device, chunks in held.items():
        assert tuple(chunks) == _chunks(device, shards) and sum(chunks) == 2 * shards - 1
