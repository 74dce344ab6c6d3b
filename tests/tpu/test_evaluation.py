"""Scoring and decoding through the TPU's own compiler, without a TPU."""

import pytest

from resonance_jax import model, rope
from resonance_jax.evaluate.compiled_nll import compile_nll
from resonance_jax.generate.compiled_decode import compile_decode_step
from resonance_jax.parallel import topology
from resonance_jax.parallel.mesh import make_mesh

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        not topology.has_compiler(), reason="libtpu is not installed: make test-tpu installs it"
    ),
]
SMALL = model.PRESETS["tiny"].replace(d_model=256, n_heads=2, n_kv_heads=2, head_dim=128, dtype="bfloat16")
SEVEN = model.PRESETS["llama2-7b"].replace(dtype="bfloat16")
TABLE = rope.frequencies(rope.RopeSpec("yarn", scale=8.0, train_length=4096, resonance=True), length=32_768)


def mesh(name: str, **sizes: int):
    return make_mesh(devices=topology.absent_devices(name), **sizes)


def test_a_small_prefill_and_a_decoding_step():
    scored = compile_nll(SMALL, mesh("v5e:2x2", sequence=4), 1, 4096, TABLE)
    assert scored.fits and scored.attention == "splash" and scored.unknown_loops == 0
    step = compile_decode_step(SMALL, mesh("v5e:2x2", tensor=2, data=2), 4, 1024, TABLE)
    stacks = 2 * 2 * 4 * 2 * 1024 * 128 * 2 // 4  # keys and values, two layers, in bfloat16, over four chips
    assert step.fits and step.attention != "splash"
    assert step.aliases is not None and stacks <= step.aliases < 1.1 * stacks


@pytest.mark.full
@pytest.mark.parametrize("length", [32_768, 131_072])
def test_perplexity_of_7b_over_a_sequence_mesh(length):
    scored = compile_nll(SEVEN, mesh("v5p:2x2x2", sequence=8), 1, length, TABLE)
    assert scored.fits and scored.attention == "splash"


@pytest.mark.full
@pytest.mark.parametrize("capacity", [32_768, 131_072])
def test_a_decoding_step_of_7b(capacity):
    step = compile_decode_step(SEVEN, mesh("v5p:2x2x2", tensor=8), 1, capacity, TABLE)
    assert step.fits


def test_a_mesh_over_every_chip_that_is_known():
    slices = {
        "v4": "v4:2x2x1",
        "v5e": "v5e:2x2",
        "v5p": "v5p:2x2x1",
        "v6e": "v6e:2x2",
        "tpu7x": "tpu7x:2x2x1",
    }
    assert slices.keys() == set(topology.CHIPS)
    for chip, name in slices.items():
        cores = 2 if chip == "tpu7x" else 1
        made = make_mesh(fsdp=-1, devices=topology.absent_devices(name))
        assert made.size == 4 * cores and topology.per_slice(made) == 0, name
    both = make_mesh(data=2, fsdp=-1, devices=topology.absent_devices("v5p:2x2x1", 2))
    assert [{device.slice_index for device in row.flat} for row in both.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match="give --data 2"):
        make_mesh(fsdp=-1, devices=topology.absent_devices("v5p:2x2x1", 2))
    with pytest.raises(ValueError, match="cannot describe a slice v5p:3x5x7"):
        topology.absent_devices("v5p:3x5x7")
