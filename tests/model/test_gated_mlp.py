"""The MLP that keeps nothing: its values and gradients are those of one that is differentiated by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax.model.gated_mlp import gated_mlp


def plain(x, gate, up, down, kind):
    h = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}[kind](x @ gate) * (x @ up)
    return h @ down


def given(rows=(2, 7), D=12, F=20, dtype="float64"):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), dtype)
    return draw(*rows, D), draw(D, F), draw(D, F), draw(F, D), draw(*rows, D)


@pytest.mark.parametrize("kind", ["swiglu", "geglu"])
def test_values_and_gradients(x64, kind):
    *arguments, d_out = given()

    def both(mlp):
        out, back = jax.vjp(lambda *a: mlp(*a, kind), *arguments)
        return out, *back(d_out)

    for got, wanted in zip(both(gated_mlp), both(plain), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_nothing_but_its_input_is_kept():
    *arguments, _ = given(dtype="float32")
    _, back = jax.vjp(lambda *a: gated_mlp(*a, "swiglu"), *arguments)
    kept = {x.shape for x in jax.tree.leaves(back) if isinstance(x, jax.Array)}
    assert kept == {x.shape for x in arguments}
