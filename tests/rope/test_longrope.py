"""Any table as a config that unmodified transformers loads, and back."""

import json

import numpy as np
import pytest

from resonance_jax import rope


@pytest.mark.parity
@pytest.mark.parametrize(("head_dim", "base"), [(128, 1e4), (80, 5e5), (6, 1e7)])
def test_any_table_as_longrope(rotary_module, oracle, head_dim, base):
    """Every method with and without Resonance: transformers recovers the frequencies to 6e-7."""
    import torch

    for options in oracle.one_of_each(head_dim, base):
        for resonance in (False, True):
            spec = rope.RopeSpec(resonance=resonance, **options)
            freqs = rope.frequencies(spec, 32_768)
            keys = rope.to_longrope(freqs, base=base, train_length=4096, length=32_768, head_dim=head_dim)
            module = rotary_module(keys)
            for last in (2000, 32_767):  # one list: the same within the training length and beyond
                module(torch.zeros(1), torch.tensor([[last]]))
                np.testing.assert_allclose(module.inv_freq, freqs.inv_freq64, rtol=6e-7, atol=1e-29)
            assert module.attention_scaling == float(freqs.attention_factor)
            restored = rope.frequencies(rope.from_hf(json.loads(json.dumps(keys))))
            assert rope.same(restored, freqs)


@pytest.mark.parity
def test_pairs_that_never_turn(rotary_module):
    import torch

    spec = rope.RopeSpec(method="proportional", partial_rotary_factor=0.5, resonance=True)
    freqs = rope.frequencies(spec)
    keys = rope.to_longrope(freqs, base=1e4, train_length=512, length=4096)
    cos, sin = rotary_module({**keys, "head_dim": 128})(torch.zeros(1), torch.tensor([[2**20]]))
    assert (cos[0, 0, 32:64] == 1).all() and sin[0, 0, 32:64].abs().max() < 1e-20
    assert rope.same(rope.frequencies(rope.from_hf({**keys, "head_dim": 128})), freqs)


def test_part_of_a_head():
    """The factor that is written gives the rotary size back, for every pair of sizes."""
    for head_dim in range(2, 130, 2):
        for rotary in range(2, head_dim + 1, 2):
            freqs = rope.frequencies(rope.RopeSpec(head_dim=rotary))
            keys = rope.to_longrope(freqs, base=1e4, train_length=8, length=8, head_dim=head_dim)
            assert int(head_dim * keys.get("partial_rotary_factor", 1)) == rotary
    assert rope.from_hf(keys).rotary_dim == 128


def test_bad_lengths_and_bases():
    freqs = rope.frequencies(rope.RopeSpec())
    for wrong in ({"train_length": 9}, {"train_length": 0}, {"base": 1.0}, {"head_dim": 64}):
        settings = {"base": 1e4, "train_length": 8, "length": 8, **wrong}
        with pytest.raises(
            ValueError, match=r"expected 0 < train_length <= length, base > 1 and head_dim >= 128"
        ):
            rope.to_longrope(freqs, **settings)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"resonance": True}, "Resonance"),
        ({"method": "ntk", "scale": 8}, "static NTK"),
        ({"method": "dynamic_yarn", "train_length": 64}, "dynamic YaRN"),
        ({"method": "yarn", "train_length": 64, "ramp": "rotations"}, 'ramp="rotations"'),
        ({"method": "yarn", "train_length": 64, "extrapolation_factor": 0.5}, "extrapolation_factor=0.5"),
    ],
)
def test_what_transformers_has_no_name_for(options, what):
    with pytest.raises(ValueError, match=f"no name for {what}; export the table instead: rope.to_longrope"):
        rope.to_hf(rope.RopeSpec(**options))


def test_what_has_no_name_is_written_as_its_table(oracle):
    """With a length, to_hf writes a longrope that from_hf reads as the same table; a name stays a name."""
    for options in oracle.one_of_each(64, 1e4, train_length=512):
        for resonance in (False, True):
            spec = rope.RopeSpec(resonance=resonance, **options)
            config = json.loads(json.dumps(rope.to_hf(spec, length=4096)))
            if not resonance and spec.method not in ("ntk", "dynamic_yarn"):
                assert rope.to_hf(spec, length=4096) == rope.to_hf(spec)
                continue
            assert config["rope_parameters"]["rope_type"] == "longrope"
            assert config["max_position_embeddings"] == 4096
            table = rope.frequencies(rope.from_hf(config), 4096)
            assert rope.same(table, rope.frequencies(spec, 4096))
    with pytest.raises(
        ValueError, match="Resonance RoPE is written as `longrope`, which states the training"
    ):
        rope.to_hf(rope.RopeSpec(resonance=True), length=4096)
