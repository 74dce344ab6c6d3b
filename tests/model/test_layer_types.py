"""Layers of several kinds: against the float64 oracle, and a stack of one kind is the program it was."""

import chex
import jax
import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.model import DecoderConfig, LayerType, forward, hidden_states
from resonance_jax.model import lora as adapters
from resonance_jax.model.layer_types import Group, groups
from resonance_jax.model.parameters import create, shardings
from resonance_jax.parallel.mesh import make_mesh
from resonance_jax.settings.lora import LoraConfig
from tests.model.test_decoder import PACKED, SMALL, TOKENS, forward_jit, lively, oracle
from tests.unchecked import unchecked

FULL, LOCAL = LayerType(), LayerType("sliding_attention", window=4)
BARE = LayerType("bare", rope=False)
BARE_LOCAL = LayerType("bare_sliding", window=3, rope=False)
GEMMA = (LOCAL, LOCAL, FULL)
TABLES = {
    "full_attention": rope.frequencies(
        rope.RopeSpec("yarn", head_dim=8, base=1e6, scale=4.0, train_length=8, resonance=True)
    ),
    "sliding_attention": rope.frequencies(rope.RopeSpec(head_dim=8)),
}
ONE = TABLES["full_attention"]


@pytest.mark.parametrize(
    ("n_layers", "types", "freqs", "segment_ids"),
    [
        (8, GEMMA, TABLES, None),
        (8, GEMMA, TABLES, PACKED),
        (5, (FULL, FULL, BARE), ONE, None),
        (4, (FULL, LOCAL, LOCAL, BARE_LOCAL), TABLES, PACKED),
        (2, (BARE,), {}, None),
    ],
    ids=["pattern and rest", "packed", "one table, no RoPE", "runs", "no RoPE at all"],
)
def test_float64_oracle(x64, n_layers, types, freqs, segment_ids):
    config = SMALL.replace(dtype="float64", n_layers=n_layers, layer_types=types)
    params = lively(config)
    logits = forward_jit(config, params, TOKENS, freqs, segment_ids=segment_ids)
    np.testing.assert_allclose(logits, oracle(config, params, TOKENS, freqs, segment_ids), rtol=0, atol=1e-11)


def test_which_layer_has_which_table_matters():
    """Swapping the tables, or the types, gives other logits: the oracle above can tell them apart."""
    config = SMALL.replace(n_layers=8, layer_types=GEMMA)
    params = lively(config)
    logits = forward_jit(config, params, TOKENS, TABLES)
    swapped = dict(zip(TABLES, reversed(TABLES.values()), strict=True))
    others = [
        forward_jit(config, params, TOKENS, swapped),
        forward_jit(config.replace(layer_types=(FULL, LOCAL, LOCAL)), params, TOKENS, TABLES),
        forward_jit(config, params, TOKENS, ONE),
    ]
    assert all(np.abs(logits - other).max() > 1e-3 for other in others)


def text(config, freqs, fn=forward):
    like = jax.eval_shape(lambda: create(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 12), np.int32)
    return jax.jit(lambda params, tokens, freqs: fn(config, params, tokens, freqs)).lower(like, tokens, freqs)


def gradient(config, params, tokens, freqs):
    return jax.grad(lambda p: hidden_states(config, p, tokens, freqs).sum())(params)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_layers_of_one_type_are_the_program_without_types(window, remat):
    plain = SMALL.replace(n_layers=4, window=window, remat=remat)
    typed = plain.replace(window=None, layer_types=(LayerType("any", window),))
    for fn in (forward, gradient):
        assert text(plain, ONE, fn).as_text() == text(typed, ONE, fn).as_text()
        assert text(typed, ONE, fn).as_text() == text(typed, {"any": ONE}, fn).as_text()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_does_not_grow_with_depth(remat):
    lines = [
        len(
            text(SMALL.replace(n_layers=n, layer_types=GEMMA, remat=remat), TABLES, gradient)
            .as_text()
            .split("\n")
        )
        for n in (9, 11, 24, 26)
    ]
    assert lines[0] == lines[2] and lines[1] == lines[3]


def test_gradients_are_those_of_layers_that_keep_everything():
    config = SMALL.replace(n_layers=3, layer_types=(LOCAL, FULL), kernel="block_pairs")
    params, run = lively(config), jax.jit(gradient, static_argnums=0)
    kept = run(config, params, TOKENS, TABLES)
    for remat in ("full", "attention"):
        again = run(config.replace(remat=remat), params, TOKENS, TABLES)
        chex.assert_trees_all_close(again, kept, rtol=1e-4, atol=1e-4)


def test_time_cut_over_a_mesh():
    config = SMALL.replace(n_layers=5, layer_types=(LOCAL, BARE, FULL))
    params, tokens = lively(config), np.tile(TOKENS, (2, 8))[:, :64]
    mesh = make_mesh(fsdp=2, tensor=2, sequence=2)
    whole = forward_jit(config, params, tokens, TABLES)
    placed = jax.device_put(params, shardings(config, mesh))
    cut = jax.jit(forward, static_argnums=0)(config, placed, tokens, TABLES)
    np.testing.assert_allclose(cut, whole, rtol=0, atol=2e-4)


def test_adapters_follow():
    config, lora = SMALL.replace(n_layers=5, layer_types=(LOCAL, LOCAL, FULL)), LoraConfig(rank=2)
    params = lively(config)
    drawn = adapters.create(config, lora, jax.random.key(0))
    drawn = {name: one._replace(b=one.b + 0.1) for name, one in drawn.items()}
    laid = forward_jit(config, adapters.adapt(params, drawn, lora), TOKENS, TABLES)
    np.testing.assert_allclose(
        laid, forward_jit(config, adapters.merge(params, drawn, lora), TOKENS, TABLES), rtol=0, atol=5e-4
    )


def test_how_the_stack_is_cut():
    assert groups([FULL] * 4) == (Group(0, (FULL,), 4),)
    assert groups(GEMMA * 2) == (Group(0, GEMMA, 2),)
    assert groups((*GEMMA * 2, LOCAL, LOCAL)) == (Group(0, GEMMA, 2), Group(6, (LOCAL,), 2))
    assert groups([FULL, *[LOCAL] * 3]) == (Group(0, (FULL,), 1), Group(1, (LOCAL,), 3))
    assert groups([LOCAL]) == (Group(0, (LOCAL,), 1),)


def test_the_config_as_json_is_what_it_was():
    """Identities that earlier versions kept do not change where nothing new is said."""
    assert "layer_types" not in SMALL.to_dict()
    assert SMALL.replace(layer_types=(LOCAL,)).to_dict()["layer_types"] == (
        {"name": "sliding_attention", "window": 4, "rope": True},
    )
    with unchecked():
        assert SMALL.replace(layer_types=[FULL]) == SMALL.replace(layer_types=(FULL,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ()}, "must be 1 to 2 LayerTypes"),
        ({"layer_types": GEMMA}, "must be 1 to 2 LayerTypes"),
        ({"layer_types": ("full_attention",)}, "must be 1 to 2 LayerTypes"),
        ({"layer_types": (FULL,), "window": 4}, "each type states its own"),
        ({"layer_types": (FULL, LayerType(window=3))}, "share the name 'full_attention'"),
    ],
)
def test_types_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message), unchecked():
        SMALL.replace(**changes)


def test_a_type_that_is_none():
    for name, window in (("", None), (3, None), ("a", 0), ("a", 2.0), ("a", True)):
        with pytest.raises(ValueError, match="layer type"), unchecked():
            LayerType(name, window)


@pytest.mark.parametrize(
    ("freqs", "message"),
    [
        ({"full_attention": ONE}, "give one for each"),
        ({**TABLES, "bare": ONE}, "'bare'"),
        ({**TABLES, "sliding_attention": rope.frequencies(rope.RopeSpec(head_dim=16))}, "a head has 8"),
    ],
)
def test_tables_that_do_not_fit(freqs, message):
    config = SMALL.replace(n_layers=3, layer_types=(FULL, LOCAL, BARE))
    with pytest.raises(ValueError, match=message):
        forward(config, lively(config), TOKENS, freqs)


def test_one_trace_serves_every_encoding():
    config = SMALL.replace(n_layers=3, layer_types=GEMMA)
    params = lively(config)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def mixed_logits(freqs):
        return forward(config, params, TOKENS, freqs)

    for freqs in (TABLES, {**TABLES, "full_attention": TABLES["sliding_attention"]}):
        mixed_logits(freqs)


def test_a_config_is_hashable():
    assert len({SMALL.replace(layer_types=(FULL,)), SMALL.replace(layer_types=(FULL,)), SMALL}) == 2
    assert DecoderConfig.replace(SMALL, layer_types=(FULL, LOCAL)).types == (FULL, LOCAL)
