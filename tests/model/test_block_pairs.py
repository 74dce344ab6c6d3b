"""Block pairs against the XLA path, in float64 to 1e-10; what they cost; where they must compose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from resonance_jax.model import block_pairs as module
from resonance_jax.model.block_pairs import SAVED, Plan, block_pairs, pairs
from resonance_jax.model.kernel_choice import attention
from resonance_jax.model.lowering import lowering_for
from resonance_jax.parallel.mesh import make_mesh


def inputs(B, T, N, K, H, S=None, dtype="float32"):
    """q, k, v and the output's cotangent."""
    rng = np.random.default_rng(0)
    shapes = [(B, T, N, H), (B, S or T, K, H), (B, S or T, K, H), (B, T, N, H)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def results(kernel, q, k, v, d_out):
    """[output, dq, dk, dv]."""

    def run(q, k, v, d_out):
        out, vjp = jax.vjp(kernel, q, k, v)
        return [out, *vjp(d_out)]

    quickly = {"xla_backend_optimization_level": 0}  # compiled in half the time
    return jax.jit(run, compiler_options=quickly)(q, k, v, d_out)


def both(q, k, v, d_out, block, **options):
    """The results of block pairs and of the XLA path."""
    blocks = results(lambda *x: block_pairs(*x, block=block, **options), q, k, v, d_out)
    return blocks, results(lambda *x: attention(*x, kernel="xla", **options), q, k, v, d_out)


def assert_close(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


@st.composite
def cases(draw):
    T, S = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    segments = draw(st.sampled_from([None, "shared", "own"]))
    S = T if segments == "shared" else S
    causal = draw(st.booleans())
    options = dict(
        causal=causal,
        window=draw(st.none() | st.integers(1, 60)) if causal else None,
        offset=draw(st.none() | st.integers(-10, 60)),
        scale=draw(st.sampled_from([None, 1.0])),
    )
    sizes = draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)))
    return T, S, segments, options, sizes, draw(st.sampled_from([16, 32]))


@settings(max_examples=7, deadline=None, derandomize=True, database=None)
@example((50, 60, "own", dict(causal=True, window=20, offset=None, scale=None), (1, 2, 2), 16))
@given(cases())
def test_it_is_softmax_attention_whatever_the_shape(case):
    T, S, segments, options, (B, K, G), block = case
    rng = np.random.default_rng(1)
    ids = lambda length: jnp.asarray(np.sort(rng.integers(0, 3, (B, length)), axis=1), jnp.int32)
    if segments:
        options["segment_ids"] = ids(T)
    if segments == "own":
        options["kv_segment_ids"] = ids(S)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        got, wanted = both(*inputs(B, T, K * G, K, 8, S, "float64"), block, **options)
        assert got[0].dtype == jnp.float64
        assert_close(got, wanted, 1e-10)


@pytest.mark.parametrize("segments", [False, True])
def test_one_head_after_another_is_all_of_them_at_once(monkeypatch, segments):
    """As a CPU does where the tiles of all heads are too many for its cache; two rows, grouped heads."""
    given, options = inputs(2, 70, 6, 2, 8, S=90), dict(block=32, window=40)
    if segments:
        ids = [jnp.asarray(np.stack([np.arange(n) // 40, np.arange(n) // 25]), jnp.int32) for n in (70, 90)]
        options |= {"segment_ids": ids[0], "kv_segment_ids": ids[1]}
    together = results(lambda *x: block_pairs(*x, **options), *given)
    with monkeypatch.context() as patch:
        patch.setattr(module, "many_heads", lambda heads, length: True)
        apart = results(lambda *x: block_pairs(*x, **options), *given)
        program = str(jax.make_jaxpr(lambda *x: block_pairs(*x, **options))(*given[:3]))
        assert "length=4" in program  # two rows of two key heads
    assert_close(apart, together, 1e-6)
    assert [module.many_heads(*case) for case in ((4, 4096), (5, 4096), (64, 256), (64, 257))] == [
        False,
        True,
        False,
        True,
    ]


def test_on_a_mesh_the_rows_stay_apart(monkeypatch):
    """A row after another would send every row to every device."""
    monkeypatch.setattr(module, "many_heads", lambda heads, length: True)
    mesh = make_mesh(data=2, tensor=4)
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    q, k, v, _ = (jax.device_put(x, where) for x in inputs(2, 40, 4, 2, 8))
    with jax.set_mesh(mesh):
        text = jax.jit(lambda *x: block_pairs(*x, block=16)).lower(q, k, v).compile().as_text()
    assert "all-gather" not in text and "collective-permute" not in text


def test_in_the_dtypes_of_training(strict_dtypes):
    ids = jnp.asarray(np.arange(200) // 160, jnp.int32)[None]
    given = inputs(1, 200, 4, 2, 64)
    got, wanted = both(*given, 64, window=100, segment_ids=ids)
    assert_close(got, wanted, 1e-5)
    kernel = lambda *x: block_pairs(*x, block=64, window=100, segment_ids=ids)
    low = results(kernel, *(x.astype(jnp.bfloat16) for x in given))
    assert all(x.dtype == jnp.bfloat16 for x in low)
    assert_close(low, wanted, 2e-2)


def test_scores_far_apart_neither_overflow_nor_vanish(x64):
    q, k, v, d_out = inputs(1, 70, 1, 1, 16, dtype="float64")
    assert_close(*both(100 * q, 10 * k, v, d_out, 16), 1e-10)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.booleans(),
    st.none() | st.integers(1, 60),
    st.integers(-30, 90),
)
def test_the_pairs_are_those_that_meet(T, S, blocks, causal, window, offset):
    rows, columns = blocks
    plan = Plan(
        T, S, rows, columns, causal, window if causal else None, offset, 1.0, segments=False, by_head=False
    )
    masked, whole = pairs(plan)
    back = offset + np.arange(T)[:, None] - np.arange(S)
    seen = (back >= 0) & (back < (window or 10**9)) if causal else np.ones((T, S), bool)
    block = lambda pair: seen[pair[0] * rows :, pair[1] * columns :][:rows, :columns]
    for pair in masked:
        assert block(pair).any() and (not block(pair).all() or (pair[1] + 1) * columns > S)
    assert all(block(pair).all() for pair in whole)
    covered = sum(block(pair).sum() for pair in [*masked, *whole])
    assert covered == seen.sum()


def test_a_block_suits_the_platform_that_the_program_is_for():
    """16 heads on 2 of keys: on a CPU 8 of them after another in blocks of 256, else all in blocks of 512."""

    def scans(**options):
        x, of_keys = (jax.ShapeDtypeStruct((1, 2048, heads, 8), jnp.float32) for heads in (16, 2))
        return str(jax.make_jaxpr(lambda *x: block_pairs(*x, **options))(x, of_keys, of_keys))

    assert scans() == scans(block=256) != scans(block=512)
    with lowering_for("gpu", (7, 5)):
        assert scans() == scans(block=512) != scans(block=256)


def test_a_window_shortens_the_list():
    plan = Plan(4096, 4096, 512, 512, True, None, 0, 1.0, segments=False)
    assert [len(x) for x in pairs(plan)] == [8, 28]
    assert [len(x) for x in pairs(plan._replace(window=512))] == [15, 0]


def test_it_composes_with_runs_layers_and_recomputation():
    """vmap over runs of a scan over layers, each recomputed: gradients as through the XLA path."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((2, 1, 50, 2, 8)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((2, 3, 8, 8)) / 8**0.5, jnp.float32)

    def gradient(kernel):
        def loss(weights, x):
            layer = jax.checkpoint(lambda x, w: (x + kernel(x @ w, x[:, :, :1], x[:, :, 1:]), None))
            return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()

        return jax.jit(jax.vmap(jax.grad(loss)))(weights, x)

    got = gradient(lambda *x: block_pairs(*x, block=16))
    assert_close([got], [gradient(lambda *x: attention(*x, kernel="xla"))], 1e-5)


def test_a_policy_can_keep_what_the_gradient_needs():
    """Forward and gradient are two scans each, and recomputation two more, unless the names are kept."""
    q, k, v, _ = inputs(1, 64, 2, 1, 8)
    keep = jax.checkpoint_policies.save_only_these_names(*SAVED)
    scans = []
    for policy in (None, keep):
        layer = jax.checkpoint(lambda q: block_pairs(q, k, v, block=16).sum(), policy=policy)
        scans.append(str(jax.make_jaxpr(jax.grad(layer))(q)).count("scan["))
    assert scans == [6, 4]


def test_batch_and_heads_stay_on_their_devices():
    sharded = NamedSharding(make_mesh(data=4, tensor=2), PartitionSpec("data", None, "tensor", None))
    given = inputs(4, 48, 4, 2, 16)
    _, vjp = jax.vjp(lambda *x: block_pairs(*x, block=16), *given[:3])
    kernel = jax.jit(lambda q, k, v, d_out: jax.vjp(lambda *x: block_pairs(*x, block=16), q, k, v)[1](d_out))
    compiled = kernel.lower(*jax.device_put(given, sharded)).compile()
    moved = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [word for word in moved if word in compiled.as_text()]
    got = compiled(*jax.device_put(given, sharded))
    assert all(x.sharding.is_equivalent_to(sharded, 4) for x in got)
    assert_close(got, vjp(given[3]), 1e-5)


def test_memory_is_linear_and_the_program_does_not_grow():
    def compiled(T):
        given = [jax.ShapeDtypeStruct((1, T, 4, 64), jnp.float32)] * 3
        gradient = jax.grad(lambda *x: attention(*x, kernel="block_pairs").sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(*given).compile()

    half, full = compiled(8192), compiled(16384)
    temporaries = [c.memory_analysis().temp_size_in_bytes for c in (half, full)]
    assert temporaries[1] < 160 * 2**20
    assert temporaries[1] <= 2.2 * temporaries[0]
    operations = [c.as_text().count(" = ") for c in (half, full)]
    assert abs(operations[1] - operations[0]) <= 0.02 * operations[0]
