"""The chunked loss against log_softmax of all logits; its memory; the vocabulary in parallel."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.parallel import hlo
from resonance_jax.parallel.mesh import make_mesh, sharding
from tests.unchecked import unchecked


def plain(hidden, head, targets, z_loss=0.0):
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.promote_types(jnp.float32, hidden.dtype))
    lse = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == -100, 0, lse - target + z_loss * lse**2)


def inputs(leading=(2, 37), D=24, V=300, dtype="float32"):
    """Hidden states, head, targets (two of them ignored, V - 1 among them) and the losses' cotangent."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, V, leading)
    targets.flat[[0, 5, 7]] = -100, -100, V - 1
    hidden, head = rng.standard_normal((*leading, D)), rng.standard_normal((D, V))
    cast = lambda x: jnp.asarray(x, dtype)
    return cast(hidden), cast(head), jnp.asarray(targets, jnp.int32), cast(rng.standard_normal(leading))


def results(loss, hidden, head, targets, d_nll, **options):
    """[nll, d_hidden, d_head]."""

    def run(hidden, head, d_nll):
        nll, vjp = jax.vjp(lambda hidden, head: loss(hidden, head, targets, **options), hidden, head)
        return [nll, *vjp(d_nll)]

    return jax.jit(run)(hidden, head, d_nll)


def assert_close(got, wanted, tolerance):
    """Norm-wise."""
    for a, b in zip(got, wanted, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.fixture
def narrow(monkeypatch):
    """Tiles of 128 vocabulary entries: three for V = 300, the last overlapping the one before."""
    monkeypatch.setattr(sys.modules[linear_cross_entropy.__module__], "TILE", 1)


@pytest.mark.parametrize(
    "leading, options",
    [
        ((2, 37), dict(chunk=16)),
        ((2, 37), dict(z_loss=1e-2)),
        ((74,), dict(chunk=1000)),
        ((3, 8), dict(chunk=1)),
    ],
)
def test_it_is_the_plain_loss(x64, narrow, leading, options):
    given = inputs(leading, dtype="float64")
    wanted = results(plain, *given, z_loss=options.get("z_loss", 0.0))
    with jax.numpy_dtype_promotion("strict"):
        assert_close(results(linear_cross_entropy, *given, **options), wanted, 1e-13)


def test_in_the_dtypes_of_training(strict_dtypes, narrow):
    hidden, head, targets, d_nll = inputs()
    with jax.numpy_dtype_promotion("standard"):
        wanted = results(plain, hidden, head, targets, d_nll)
    assert_close(results(linear_cross_entropy, hidden, head, targets, d_nll, chunk=16), wanted, 1e-6)
    low = results(linear_cross_entropy, hidden.astype(jnp.bfloat16), head, targets, d_nll, chunk=16)
    assert [x.dtype.name for x in low] == ["float32", "bfloat16", "float32"]
    assert_close(low, wanted, 1e-2)


def test_ignored_positions_give_nothing_and_impossible_targets_give_nan():
    hidden, head, _, _ = inputs((8,))
    targets = jnp.array([-100, 3, 300, -1, 0, 1, 2, -100])
    nll, vjp = jax.vjp(lambda h, w: linear_cross_entropy(h, w, targets), hidden, head)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(nll)), [2, 3])
    np.testing.assert_array_equal(np.flatnonzero(nll == 0), [0, 7])
    d_hidden, _ = vjp(jnp.ones(8))
    np.testing.assert_array_equal(np.flatnonzero(~d_hidden.any(axis=1)), [0, 7])
    assert linear_cross_entropy(hidden, head, targets, ignore=-1)[3] == 0


def test_runs_side_by_side():
    hidden, head, targets, _ = inputs((2, 2, 10))
    heads = jnp.stack([head, 2 * head])
    got = jax.vmap(lambda h, w, t: linear_cross_entropy(h, w, t, chunk=6))(hidden, heads, targets)
    wanted = jnp.stack([plain(hidden[e], heads[e], targets[e]) for e in range(2)])
    assert_close([got], [wanted], 1e-6)


@pytest.mark.parametrize("V, shards", [(320, 4), (300, 1)])
def test_vocabulary_in_parallel(narrow, V, shards):
    """Sharded over batch and vocabulary, nothing but sums of positions and gradients travels."""
    mesh = make_mesh(data=8 // shards, tensor=shards)
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    hidden, head, targets, d_nll = inputs((8, 13), V=V)
    head_axes = (None, "tensor" if shards > 1 else None)
    placed = place(hidden, "data"), place(head, *head_axes), place(d_nll, "data")

    def run(hidden, head, d_nll):
        return results(linear_cross_entropy, hidden, head, targets, d_nll, chunk=24)

    compiled = jax.jit(run).lower(*placed).compile()
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    got = compiled(*placed)
    assert got[2].sharding.is_equivalent_to(placed[1].sharding, 2)
    assert_close(got, results(plain, hidden, head, targets, d_nll), 1e-6)


@pytest.mark.parametrize("leading", [(4, 24), (4, 23), (3, 24)])
def test_over_a_mesh_the_head_is_gathered_once(narrow, leading):
    """Rows, time, D and the vocabulary are cut, or whole where two do not divide them: one device's loss,
    and the head travels in no loop."""
    mesh = make_mesh(data=1, fsdp=2, sequence=2, tensor=2)
    hidden, head, targets, d_nll = inputs(leading, V=320)
    where = lambda axes, x: jax.device_put(x, sharding(mesh, axes, x.shape))
    placed = where(("batch", "time", None), hidden), where(("embed", "vocab"), head)
    placed += (where(("batch", "time"), d_nll),)
    options = dict(chunk=8, z_loss=1e-2)

    def run(hidden, head, d_nll):
        return results(linear_cross_entropy, hidden, head, targets, d_nll, **options)

    compiled = jax.jit(run).lower(*placed).compile()
    wanted = results(plain, hidden, head, targets, d_nll, z_loss=1e-2)
    assert_close(compiled(*placed), wanted, 1e-6)
    program = hlo.read(compiled.as_text())
    times, _ = hlo.runs(program)
    gathers = [
        times[name]
        for name, body in program.computations.items()
        for one in body
        if one.opcode.startswith("all-gather") and "320" not in one.gives and "160" in one.gives
    ]
    assert gathers == [1] * len(gathers) and gathers


def test_memory_does_not_grow_with_the_vocabulary():
    """V = 128k takes within a tenth of what V = 1k takes, beside the gradient [D, V] itself."""
    D, M = 64, 8192

    def temporaries(V):
        shapes = [((M, D), jnp.float32), ((D, V), jnp.float32), ((M,), jnp.int32)]
        given = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        gradient = jax.value_and_grad(lambda *x: linear_cross_entropy(*x).mean(), argnums=(0, 1))
        return jax.jit(gradient).lower(*given).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(128_000) <= 1.1 * (temporaries(1000) + D * 128_000 * 4)
    assert temporaries(128_000) <= 40 * 2**20


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(head=jnp.ones((23, 300))), r"head \[D, V\]"),
        (dict(targets=jnp.zeros((2, 36), jnp.int32)), "integer targets"),
        (dict(targets=jnp.zeros((2, 37))), "integer targets"),
        (dict(chunk=0), "at least 1"),
    ],
)
@unchecked()
def test_bad_input_is_refused(change, why):
    hidden, head, targets, _ = inputs()
    with pytest.raises(ValueError, match=why):
        linear_cross_entropy(**(dict(hidden=hidden, head=head, targets=targets) | change))
