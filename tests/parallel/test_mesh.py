"""The mesh puts logical axes where the rules say, and a sharded decoder computes what a whole one does."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from resonance_jax import model, rope
from resonance_jax.parallel.mesh import make_mesh, sharding


def test_sizes_must_multiply_to_the_devices():
    assert make_mesh(data=-1, tensor=2).shape == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1}
    with pytest.raises(ValueError, match="data=3 x fsdp=1 x tensor=1 x sequence=1 needs 3 devices"):
        make_mesh(data=3)
    with pytest.raises(ValueError, match="needs"):
        make_mesh(data=-1, fsdp=3)


def test_axes_that_no_side_of_a_slice_holds_go_over_parts_of_sides(monkeypatch):
    """As jax refuses fsdp 8 x tensor 2 on 4 x 4 chips; tests/tpu asks jax itself."""

    def refuse(*_, **__):
        raise NotImplementedError("Failed to find assignment for logical_axis_index 2")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    assert make_mesh(fsdp=4, tensor=2).shape == {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}


def test_rules_and_dimensions_that_do_not_divide():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert sharding(mesh, ("layers", "embed", "heads"), (3, 64, 64)).spec == P(None, ("fsdp",), ("tensor",))
    assert sharding(mesh, ("vocab", "embed"), (97, 64)).spec == P(None, ("fsdp",))


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]
)
def test_a_sharded_decoder_equals_a_whole_one(sizes):
    config = model.PRESETS["tiny"].replace(vocab_size=64, d_model=64, head_dim=32, d_ff=64)
    freqs = rope.frequencies(rope.RopeSpec(head_dim=32, resonance=True))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 24)).astype(np.int32)
    whole = model.Decoder(config, jax.random.key(1))
    mesh = make_mesh(**sizes)
    sharded = model.Decoder(config, jax.random.key(1), mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
    parts = sharded.params["layers"]["q"].sharding.num_devices
    per_device = sharded.params["layers"]["q"].addressable_shards[0].data.size
    split = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    assert parts == 8 and per_device * split == whole.params["layers"]["q"].size
    tokens = jax.device_put(tokens, sharding(mesh, ("batch", "time"), tokens.shape))
    np.testing.assert_allclose(sharded(tokens, freqs), whole(tokens, freqs), atol=2e-5)
