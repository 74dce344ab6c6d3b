"""PosGen's tables by protocol: trained with which, evaluated under which."""

import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.data.posgen import PROTOCOLS
from resonance_jax.evaluate import posgen_encodings
from tests.model.test_t5 import TYPES

SWAPPED = {  # published position type -> our name for it
    "rotary_hf": "rope",
    "rotary_scaled_linear": "linear",
    "rotary_scaled_ntk": "ntk",
    "rotary_scaled_yarn": "yarn",
    "rotary_resonance": "resonance-rope",
    "rotary_resonance_ntk": "resonance-ntk",
    "rotary_resonance_yarn": "Resonance_YaRN",
}


@pytest.mark.parametrize("id", SWAPPED)
def test_the_release_s_tables(id):
    """Those that reproduce the reference's logits (tests/model/test_t5.py), trained and evaluated."""
    trained, evaluated = TYPES[id]
    encoding = posgen_encodings.encoding(SWAPPED[id], "release")
    assert rope.same(encoding.train, trained) and rope.same(encoding.evaluation, evaluated)


def test_protocols_differ_in_tables_as_they_say():
    tables = {p: posgen_encodings.encoding("resonance-yarn", p) for p in PROTOCOLS}
    stated = {p: (e.spec.train_length, e.spec.scale, e.spec.beta_fast) for p, e in tables.items()}
    assert stated == {"release": (257, 257 / 65, 2), "paper": (64, 4, 32), "corrected": (64, 4, 2)}
    plain = rope.frequencies(rope.RopeSpec(head_dim=64, resonance=True))
    assert rope.same(tables["release"].train, plain) and rope.same(tables["corrected"].train, plain)
    assert rope.same(tables["paper"].train, tables["paper"].evaluation)
    two = posgen_encodings.encoding("yarn", "paper", beta_fast=2.0)
    assert two.spec.beta_fast == 2 and not rope.same(two.train, tables["paper"].train)


def test_one_training_serves_every_encoding_with_its_table():
    names = ["rope", "resonance-rope", "yarn", "resonance-yarn", "llama3", "dynamic-ntk"]
    groups = lambda protocol: posgen_encodings.training_groups(
        [posgen_encodings.encoding(name, protocol) for name in names]
    )
    assert groups("corrected") == [[0, 2, 4, 5], [1, 3]]
    # A dynamic method is plain RoPE at the training length.
    assert groups("paper") == [[0, 5], [1], [2], [3], [4]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("prefix", ["", "resonance-"])
def test_every_method_has_its_tables(protocol, prefix):
    for method in rope.METHODS:
        factors = (1.5,) * 32
        encoding = posgen_encodings.encoding(prefix + method, protocol, long_factor=factors)
        assert encoding.spec.method == method and encoding.spec.resonance == bool(prefix)
        assert encoding.evaluation.inv_freq64.shape == (32,)
        if method == "longrope" and protocol != "release":  # whose L is the longer length: the short list
            fastest = 1 / 1.5 if not prefix else 2 * np.pi / round(2 * np.pi * 1.5)
            assert encoding.evaluation.inv_freq64[0] == pytest.approx(fastest)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("yarm", "paper"), "unknown encoding 'yarm'; expected one of rope, linear, ntk, dynamic-ntk"),
        (("yarn", "published"), "unknown PosGen protocol 'published'; expected one of release, paper"),
        (("longrope", "paper"), "longrope needs long_factor: 32 positive numbers"),
    ],
)
def test_bad_names_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        posgen_encodings.encoding(*arguments)
