"""Splash, step by step on the CPU, against the XLA path; and lowered for a TPU that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from resonance_jax.model.block_pairs import SAVED
from resonance_jax.model.kernel_choice import attention, lowering_for
from resonance_jax.model.splash import splash
from resonance_jax.parallel.mesh import make_mesh


def inputs(B, T, N, K, H, S=None):
    rng = np.random.default_rng(0)
    shapes = [(B, T, N, H), (B, S or T, K, H), (B, S or T, K, H), (B, T, N, H)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def results(kernel, given):
    out, vjp = jax.vjp(kernel, *given[:3])
    return [out, *vjp(given[3])]


def interpreted(q, k, v, **options):
    defaults = dict(causal=True, window=None, segment_ids=None, offset=k.shape[1] - q.shape[1], scale=0.1)
    return splash(q, k, v, **(defaults | options), interpret=True)


def assert_close(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    "shape, options",
    [
        (
            (2, 150, 4, 2, 64),
            dict(segment_ids=jnp.asarray(np.repeat([np.arange(150) // 60], 2, 0), jnp.int32)),
        ),
        ((1, 150, 2, 1, 128), dict(window=40)),
        ((1, 100, 2, 2, 80, 170), {}),
        ((1, 100, 2, 2, 16, 170), dict(causal=False)),
    ],
    ids=["segments", "window", "fewer queries", "every key"],
)
def test_it_is_the_same_attention(shape, options):
    given = inputs(*shape)
    got = jax.jit(lambda *given: results(lambda *x: interpreted(*x, **options), given))(*given)
    wanted = jax.jit(lambda *given: results(lambda *x: attention(*x, scale=0.1, **options), given))(*given)
    assert_close(got, wanted)


def test_on_a_mesh_every_device_runs_its_own():
    sharded = NamedSharding(
        make_mesh(data=2, fsdp=2, tensor=2), PartitionSpec(("data", "fsdp"), None, "tensor")
    )
    given = inputs(4, 128, 4, 2, 64)
    kernel = jax.jit(lambda *given: results(interpreted, given))
    got = kernel(*jax.device_put(given, sharded))
    assert all(x.sharding.is_equivalent_to(sharded, 4) for x in got)
    assert_close(got, results(lambda *x: attention(*x, scale=0.1), given))


@pytest.mark.parametrize("H", [64, 128])
def test_it_lowers_for_a_tpu(H):
    """Forward and gradient, at a length that no block divides; three kernels: forward, dq, dk and dv."""
    given = [jax.ShapeDtypeStruct((2, 3000, heads, H), jnp.bfloat16) for heads in (8, 2, 2)]
    ids = jnp.zeros((2, 3000), jnp.int32)
    loss = lambda q, k, v: attention(q, k, v, window=1024, segment_ids=ids).astype(jnp.float32).sum()
    with lowering_for("tpu"):
        forward = jax.export.export(jax.jit(loss), platforms=["tpu"])(*given)
        gradient = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(*given)
    assert forward.mlir_module().count("tpu_custom_call") == 1
    assert gradient.mlir_module().count("tpu_custom_call") == 3


def test_a_policy_can_keep_what_the_gradient_needs():
    """The forward kernel is not run again when its named residuals are kept."""
    given = [jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)] * 3
    keep = jax.checkpoint_policies.save_only_these_names(*SAVED)
    kernels = []
    for policy in (None, keep):
        layer = jax.checkpoint(
            lambda *x: attention(*x, kernel="splash").astype(jnp.float32).sum(), policy=policy
        )
        with lowering_for("tpu"):
            step = jax.jit(jax.value_and_grad(layer, (0, 1, 2)))
            exported = jax.export.export(step, platforms=["tpu"])(*given)
        kernels.append(exported.mlir_module().count("tpu_custom_call"))
    assert kernels == [4, 3]


def test_block_pairs_lower_for_a_tpu_and_a_gpu_too():
    given = [jax.ShapeDtypeStruct((1, 2048, 4, 64), jnp.float32)] * 3
    gradient = jax.jit(jax.grad(lambda *x: attention(*x, kernel="block_pairs").sum()))
    exported = jax.export.export(gradient, platforms=["tpu", "cuda"])(*given)
    assert exported.platforms == ("tpu", "cuda")
