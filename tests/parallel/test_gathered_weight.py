"""Weights cut over fsdp travel once for a layer's forward pass and once for its gradient, cut again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import rope, train
from resonance_jax.parallel import hlo
from resonance_jax.parallel.gathered_weight import gathered_weight
from resonance_jax.parallel.mesh import make_mesh, sharding
from resonance_jax.train.run_program import RunProgram
from tests.train.small import CONFIG

AXES = ("embed", "mlp")


def test_it_is_the_cast_weight_and_its_gradient():
    weight, d_out = (jnp.asarray(np.random.default_rng(n).standard_normal((8, 6)), "float32") for n in (0, 1))
    out, back = jax.vjp(lambda w: gathered_weight(w, AXES, "bfloat16"), weight)
    (gradient,) = back(d_out.astype("bfloat16"))
    np.testing.assert_array_equal(out, weight.astype("bfloat16"))
    np.testing.assert_array_equal(gradient, d_out.astype("bfloat16").astype("float32"))
    assert gradient.dtype == weight.dtype
    mesh = make_mesh(fsdp=4, tensor=2)
    placed = jax.device_put(weight, sharding(mesh, AXES, weight.shape))
    run = jax.jit(lambda w: jax.vjp(lambda w: gathered_weight(w, AXES, "float32"), w)[1](jnp.sin(w))[0])
    assert run(placed).sharding.is_equivalent_to(placed.sharding, 2)
    np.testing.assert_allclose(run(placed), np.sin(weight), rtol=1e-6)


@pytest.mark.parametrize("kind", ["swiglu", "relu"])
def test_a_step_gathers_every_weight_of_a_layer_twice(kind):
    """Once forwards, once for everything backwards: the products that are recomputed and both gradients."""
    config = CONFIG.replace(remat="full", mlp=kind, d_ff=56, n_layers=3)
    mesh = make_mesh(fsdp=8)
    program = RunProgram(config, train.TrainConfig(1), mesh)
    batch = {"tokens": jax.ShapeDtypeStruct((8, 16), np.int32)}
    freqs = rope.frequencies(rope.RopeSpec(head_dim=16))
    text = program.step.lower(program.like, {}, batch, freqs).compile().as_text()
    compiled = hlo.read(text)
    times, _ = hlo.runs(compiled)
    gathers = sum(
        times[name] * one.gives.count(shape)
        for name, body in compiled.computations.items()
        for one in body
        if one.opcode in ("all-gather", "all-gather-start")
        for shape in ("f32[32,56]", "f32[56,32]")
    )
    weights = 3 if kind == "swiglu" else 2
    assert gathers == 2 * weights * config.n_layers
