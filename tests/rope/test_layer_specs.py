"""The encodings of a model whose layers differ: stored, compared, stated again, and refused."""

import pytest

from resonance_jax import rope
from tests.unchecked import unchecked

GLOBAL = rope.RopeSpec(head_dim=16, base=1e6, train_length=32)
LOCAL = rope.RopeSpec(head_dim=16)
GEMMA = rope.LayerSpecs({rope.SLIDING: LOCAL, rope.FULL: GLOBAL})


def test_another_encoding_goes_to_the_layers_that_see_everything():
    own = rope.restate(GEMMA, "resonance-yarn", scale=8.0)
    assert own[rope.SLIDING] is LOCAL
    assert own[rope.FULL] == rope.restate(GLOBAL, "resonance-yarn", scale=8.0)
    assert rope.restate_for_length(GEMMA, "resonance-yarn", 256) == own
    assert rope.restate(GEMMA, "own", scale=8.0) is GEMMA
    assert rope.restate_for_length(GEMMA, "own", 256) is GEMMA
    every = rope.LayerSpecs({"a": GLOBAL, "b": GLOBAL})  # no type has the name: it goes to all
    assert set(rope.restate(every, "yarn", scale=2.0).values()) == {rope.restate(GLOBAL, "yarn", scale=2.0)}
    one = rope.LayerSpecs({"a": GLOBAL, "b": LOCAL}, scaled=("a",))
    assert rope.restate(one, "linear", scale=2.0)["b"] is LOCAL


def test_what_it_says_of_itself():
    own = rope.restate(GEMMA, "yarn", scale=8.0)
    assert (own.title, own.method, own.scale, own.train_length) == ("YaRN", "yarn", 8.0, 32)
    assert (own.head_dim, own.resonance, own.dynamic) == (16, False, False)
    assert rope.restate(GEMMA, "dynamic-ntk").dynamic
    assert own.told() == "sliding_attention: RoPE (base 10000), full_attention: YaRN (base 1e+06)"
    assert rope.main_spec(own) == own[rope.FULL] and rope.main_spec(LOCAL) is LOCAL
    assert list(own) == [rope.SLIDING, rope.FULL] and len(own) == 2 and hash(own) != hash(GEMMA)


@pytest.mark.parametrize("specs", [GEMMA, LOCAL], ids=["by type", "one"])
def test_json_and_back(specs):
    assert rope.specs_from_dict(specs.to_dict()) == specs


def test_tables_by_layer_type_are_told_apart():
    tables = rope.frequencies(GEMMA)
    assert rope.same(tables[rope.SLIDING], rope.frequencies(LOCAL))
    swapped = {rope.SLIDING: tables[rope.FULL], rope.FULL: tables[rope.SLIDING]}
    assert rope.same(tables, dict(reversed(tables.items())))
    for other in (swapped, tables[rope.FULL], {rope.FULL: tables[rope.FULL]}):
        assert not rope.same(tables, other) and not rope.same(other, tables)
        assert rope.fingerprint(other) != rope.fingerprint(tables)
    record = rope.to_record(tables, GEMMA)
    assert record["spec"] == GEMMA.to_dict() and record["fingerprint"] == rope.fingerprint(tables)
    assert rope.same(rope.from_record(record), tables)


@pytest.mark.parametrize(
    ("specs", "scaled", "message"),
    [
        ({}, None, "a RopeSpec for each layer type"),
        (LOCAL, None, "a RopeSpec for each layer type"),
        ({"a": "yarn"}, None, "layer type 'a' must be a RopeSpec"),
        ({"a": LOCAL, "b": rope.RopeSpec(head_dim=8)}, None, "share a head size"),
        ({"a": LOCAL}, ("b",), "scaled must name some of a"),
        ({"a": LOCAL}, (), "scaled must name some of a"),
    ],
)
def test_bad_input_is_one_sentence(specs, scaled, message):
    with pytest.raises(ValueError, match=message), unchecked():
        rope.LayerSpecs(specs, scaled)
