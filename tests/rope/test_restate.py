"""A checkpoint's encoding under another name, scale and training length."""

import dataclasses

import pytest

from resonance_jax import rope

OWN = rope.RopeSpec("yarn", head_dim=16, base=5e5, scale=2.0, train_length=32, beta_fast=16.0)
SCALED = {"scale": 16.0, "train_length": 64}


def test_own_is_never_changed():
    assert rope.restate(OWN, "own", **SCALED) is OWN
    longrope = rope.RopeSpec(
        "longrope", head_dim=4, scale=2.0, train_length=8, short_factor=[1, 1], long_factor=[1, 2]
    )
    assert rope.restate(longrope, "own", scale=4.0) is longrope


def test_the_own_method_keeps_what_is_not_asked_for():
    assert rope.restate(OWN, "yarn") == OWN
    assert rope.restate(OWN, "resonance-yarn") == dataclasses.replace(OWN, resonance=True)
    assert rope.restate(dataclasses.replace(OWN, resonance=True), "yarn") == OWN
    assert rope.restate(OWN, "yarn", train_length=64) == dataclasses.replace(OWN, train_length=64)


def test_a_scale_that_is_asked_for_is_applied():
    """To the checkpoint's own method as to any other: one table never mixes scales."""
    names = ("linear", "ntk", "ntk-by-parts", "yarn", "llama3", "proportional")
    assert {rope.restate(OWN, name, scale=16.0).scale for name in names} == {16.0}
    assert rope.restate(OWN, "resonance-yarn", **SCALED) == dataclasses.replace(OWN, resonance=True, **SCALED)


def test_another_method_starts_from_its_defaults_on_the_same_head():
    own = dataclasses.replace(OWN, partial_rotary_factor=0.5)
    head = {"head_dim": 16, "base": 5e5, "partial_rotary_factor": 0.5}
    assert rope.restate(own, "linear", scale=4.0) == rope.RopeSpec(
        "linear", scale=4.0, train_length=32, **head
    )
    parts = rope.restate(own, "resonance-ntk-by-parts", **SCALED)
    assert parts == rope.RopeSpec("ntk_by_parts", resonance=True, **SCALED, **head)


@pytest.mark.parametrize("name", ["rope", "dynamic-ntk", "resonance-dynamic-yarn"])
def test_methods_without_a_scale_leave_it_out(name):
    assert rope.restate(OWN, name, scale=16.0) == rope.restate(OWN, name)
    assert rope.restate(OWN, name, scale=16.0).scale == 1.0


def test_a_stated_attention_factor_belongs_to_its_scale():
    stated = dataclasses.replace(OWN, attention_factor=1.25)
    assert rope.restate(stated, "resonance-yarn", scale=2.0).attention_factor == 1.25
    with pytest.raises(
        ValueError, match=r"states attention_factor for scale 2.0, not for 16.0; leave the scale"
    ):
        rope.restate(stated, "yarn", scale=16.0)
    usual = dataclasses.replace(OWN, attention_factor=float(rope.frequencies(OWN).attention_factor))
    assert rope.restate(usual, "yarn", scale=16.0) == dataclasses.replace(OWN, scale=16.0)


def test_longrope_has_one_scale():
    own = rope.RopeSpec(
        "longrope", head_dim=4, scale=2.0, train_length=8, short_factor=[1, 1], long_factor=[1, 2]
    )
    resonant = dataclasses.replace(own, resonance=True)
    assert (
        rope.restate(own, "resonance-longrope")
        == rope.restate(own, "resonance-longrope", scale=2)
        == resonant
    )
    with pytest.raises(ValueError, match=r"states short_factor, long_factor for scale 2.0, not for 4.0"):
        rope.restate(own, "longrope", scale=4.0)


@pytest.mark.parametrize(
    ("name", "asked", "sentence"),
    [
        ("yam", {}, "unknown encoding 'yam'"),
        ("resonance-ntk", {}, "'resonance-ntk' needs a scale"),
        ("llama3", {"scale": 8.0}, "needs train_length"),
        ("longrope", {"scale": 8.0, "train_length": 32}, "longrope needs short_factor"),
        ("linear", {"scale": 0.5}, "scale must be at least 1"),
        ("linear", {"scale": 2.0, "train_length": 0}, "train_length must be at least 1"),
    ],
)
def test_what_cannot_be_stated(name, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        rope.restate(rope.RopeSpec(head_dim=16), name, **asked)
