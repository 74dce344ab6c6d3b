"""The scale of a checkpoint's encoding under another name, where nobody says it."""

import dataclasses

import pytest

from resonance_jax import rope

OWN = rope.RopeSpec("yarn", head_dim=16, scale=2.0, train_length=32)


@pytest.mark.parametrize(
    ("name", "length", "scale"), [("own", 256, 2), ("yarn", 256, 2), ("ntk", 256, 8), ("linear", 16, 1)]
)
def test_the_own_method_keeps_its_scale_and_another_reaches_the_length(name, length, scale):
    assert rope.restate_for_length(OWN, name, length).scale == scale


def test_what_is_asked_for_comes_first():
    assert rope.restate_for_length(OWN, "yarn", 256, scale=4.0).scale == 4
    assert rope.restate_for_length(OWN, "linear", 256, scale=4.0).scale == 4
    assert rope.restate_for_length(OWN, "linear", 256, train_length=64).scale == 4
    assert rope.restate_for_length(OWN, "dynamic-ntk", 256) == rope.restate(OWN, "dynamic-ntk")


def test_without_a_training_length_there_is_no_scale():
    own = rope.RopeSpec(head_dim=16)
    with pytest.raises(ValueError, match=r"'linear' needs a scale .* give either"):
        rope.restate_for_length(own, "linear", 256)
    assert rope.restate_for_length(own, "linear", 256, train_length=128).scale == 2
    assert rope.restate_for_length(dataclasses.replace(own, train_length=32), "linear", 256).scale == 8
