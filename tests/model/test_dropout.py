"""Dropout: the promised probability and scale, fresh bits everywhere, rows independent of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax.model.dropout import bits16, dropout, kept_of_65536


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_share_and_mean(rate):
    x = jnp.ones((8, 250, 333))
    y = np.asarray(dropout(x, rate, jax.random.key(3)))
    share, count = (y == 0).mean(), y.size
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / count) + 1 / 65536
    np.testing.assert_allclose(y[y > 0], 65536 / kept_of_65536(rate), rtol=1e-6)
    np.testing.assert_allclose(y[y > 0].mean() * (1 - rate), 1, atol=2e-5)


def test_nothing_happens_without_a_key_or_a_rate():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_bits_are_uniform_and_used_once():
    bits = np.asarray(bits16(jax.random.key(1), (4, 64, 65, 66)))
    assert bits.dtype == np.uint16 and bits.shape == (4, 64, 65, 66)
    seen = np.bincount(bits.reshape(-1) >> 8, minlength=256)
    expected = bits.size / 256
    assert ((seen - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
    # Neighbours along every axis agree in one of 65,536, as unrelated numbers do: no stretch is repeated.
    for axis in range(4):
        same = (np.diff(bits.astype(np.int32), axis=axis) == 0).mean()
        assert same < 5 / 65536
    stretches = bits.reshape(-1, 66)
    assert len(np.unique(stretches, axis=0)) == len(stretches)


@pytest.mark.parametrize("shape", [(6, 5), (6, 7, 9), (6, 2, 3, 13)])
def test_under_vmap_and_another_key(shape):
    keys = jax.random.split(jax.random.key(5), 2)
    alone = np.stack([bits16(key, shape) for key in keys])
    np.testing.assert_array_equal(jax.vmap(lambda key: bits16(key, shape))(keys), alone)
    assert (alone[0] != alone[1]).mean() > 0.99


def test_a_mesh_makes_the_same_bits_where_they_lie():
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((4, 2), ("data", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    where = NamedSharding(mesh, P("data", "sequence"))
    draw = lambda key: bits16(key, (8, 64, 32))
    compiled = jax.jit(draw, out_shardings=where).lower(jax.random.key(2)).compile()
    np.testing.assert_array_equal(compiled(jax.random.key(2)), draw(jax.random.key(2)))
    assert "all-gather" not in compiled.as_text()
