"""What devices send each other, read from compiled programs of known traffic and from lines of a TPU's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from resonance_jax.parallel import hlo
from resonance_jax.parallel.collectives import collectives, groups_of
from resonance_jax.parallel.mesh import make_mesh


def compiled_text(inside, x, out, **sizes):
    mesh = make_mesh(**sizes)
    axis = next(iter(sizes))
    mapped = jax.shard_map(inside, mesh=mesh, in_specs=P(axis), out_specs=out, check_vma=False)
    return jax.jit(mapped).lower(x).compile().as_text()


def test_a_loop_s_collectives_count_as_often_as_they_run():
    def inside(x):
        add = lambda total, _: (total + jax.lax.psum(x * total, "data"), None)
        return jax.lax.scan(add, jnp.ones_like(x), None, length=5)[0]

    program = hlo.read(compiled_text(inside, np.ones((8, 100), np.float32), P("data"), data=8))
    (found,) = collectives(program)
    assert (found.kind, found.over, found.across) == ("all-reduce", 8, False)
    assert (found.count, found.bytes) == (5, 5 * 100 * 4)
    assert hlo.runs(program)[1] == 0


def test_a_gather_gives_every_device_the_whole():
    gather = lambda x: jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
    text = compiled_text(gather, np.ones((8, 100), np.float32), P(), fsdp=8)
    (found,) = collectives(hlo.read(text))
    assert (found.kind, found.over, found.count, found.bytes) == ("all-gather", 8, 1, 8 * 100 * 4)


def test_groups_that_reach_over_slices():
    both = lambda x: jax.lax.psum(x, "data")
    program = hlo.read(compiled_text(both, np.ones((2, 100), np.float32), P(), data=2, fsdp=4))
    assert collectives(program, per_slice=4)[0].across is True
    assert collectives(program, per_slice=8)[0].across is False


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, use", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use_global_device_ids=true", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, meta", [[0, 1], [1, 0]]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", None),
        ("nothing", None),
    ],
)
def test_groups(text, groups):
    assert groups_of(text) == groups


TPU = """HloModule jit_step

%body (p: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %collective-permute-start.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = bf16[4,8]{1,0} collective-permute-done(%collective-permute-start.1)
}

%cond (p: (u32[], bf16[4,8])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(4)
  %get-tuple-element.1 = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.1), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %while.1 = (u32[]{:T(128)}, bf16[4,8]{1,0}) while(%tuple.1), condition=%cond, body=%body
  %send.7 = (bf16[24,8,128]{2,1,0}, u32[], token[]) send(%b, %after-all.7), channel_id=30, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_a_tpu_s_text():
    """Its loops state no number of rounds, but their conditions do; between slices the host carries."""
    network, permute = collectives(hlo.read(TPU), per_slice=4)
    assert (network.kind, network.over, network.across, network.count) == ("all-reduce", 2, True, 1)
    assert network.bytes == 24 * 8 * 128 * 2
    assert (permute.kind, permute.count, permute.bytes) == ("collective-permute", 4, 4 * 4 * 8 * 2)
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.read("nothing")
