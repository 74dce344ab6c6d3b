"""Checkpoints and encodings as a command line names them, and which scale is taken."""

import pytest

from resonance_jax import interop, model, rope
from resonance_jax.command.checkpoints import encodings_of, named_checkpoints, scale_note
from resonance_jax.rope import RopeSpec

OWN = RopeSpec("yarn", head_dim=16, scale=2.0, train_length=32)


@pytest.fixture
def small(tmp_path):
    folder = tmp_path / "lr=0.1" / "small=1"
    lm = model.Decoder(model.PRESETS["tiny"], rope=RopeSpec(head_dim=64, train_length=32))
    interop.save_hf(lm, folder)
    return folder


def test_what_exists_is_a_path_and_a_name_ends_at_the_first_equals_sign(small):
    named = named_checkpoints([str(small), f"other={small}"])
    assert {name: checkpoint.path for name, checkpoint in named.items()} == {"small=1": small, "other": small}
    with pytest.raises(ValueError, match="two checkpoints share the name 'small=1'"):
        named_checkpoints([str(small), f"{small}/"])


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "no checkpoint to score"),
        (["a=/nowhere"], "checkpoint a: /nowhere is not a directory"),
    ],
)
def test_bad_checkpoints(entries, sentence):
    with pytest.raises(ValueError, match=sentence):
        named_checkpoints(entries)


def test_scales_that_nobody_asked_for():
    """The checkpoint's own for its own method, otherwise what reaches the longest length; and it is said."""
    names = ["own", "yarn", "resonance-yarn", "linear", "rope"]
    specs = encodings_of(OWN, names, "a", ["a"], length=256)
    assert list(specs) == ["YaRN (own)", "YaRN", "Resonance YaRN", "Linear", "RoPE"]
    assert [spec.scale for spec in specs.values()] == [2, 2, 2, 8, 1]
    notes = [scale_note(spec, OWN, None, 256) for spec in specs.values()]
    own = "s = 2, the checkpoint's own"
    assert notes == [own, own, own, "s = 8, from 32 positions to 256", ""]


def test_a_scale_that_is_asked_for_is_everybodys():
    specs = encodings_of(OWN, ["own", "yarn", "linear"], "a", ["a"], length=256, scale=16.0)
    assert [spec.scale for spec in specs.values()] == [2, 16, 16]
    assert scale_note(specs["YaRN"], OWN, 16.0, 256) == "s = 16, as asked"


def test_an_encoding_may_be_for_one_checkpoint():
    asked = ["yarn@b", "rope"]
    assert list(encodings_of(OWN, asked, "a", ["a", "b"], length=64)) == ["RoPE, a"]
    assert list(encodings_of(OWN, asked, "b", ["a", "b"], length=64)) == ["YaRN, b", "RoPE, b"]
    with pytest.raises(ValueError, match="'yarn@c' names no checkpoint; there are a, b"):
        encodings_of(OWN, ["yarn@c"], "a", ["a", "b"], length=64)


def test_where_layers_differ_it_is_told_which_have_which_encoding():
    own = rope.LayerSpecs({rope.FULL: OWN, rope.SLIDING: rope.RopeSpec(head_dim=OWN.head_dim)})
    (label, spec), *_ = encodings_of(own, ["yarn"], "a", ["a"], 256).items()
    assert label == "YaRN" and spec[rope.SLIDING] == own[rope.SLIDING]
    note = scale_note(spec, own, None, 256)
    assert note.startswith("s = ") and "full_attention: YaRN (base " in note
    assert note.endswith("sliding_attention: RoPE (base 10000)")
    assert scale_note(own, own, None, 256) == f"s = 2, the checkpoint's own; {own.told()}"
