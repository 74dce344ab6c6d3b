"""Attention when time is cut over the mesh axis `sequence`: local queries, keys and values gathered.

Causal queries near the end see more keys than those near the start. So every device's two halves of queries
change places before attention: device d works on half d and half 2n-1-d of the 2n there are, which is the
same work for all n devices (the zigzag of Llama 3's context parallelism, Dubey et al. 2024, section 3.3.2).
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from resonance_jax.model.kernel_choice import attention as local_attention
from resonance_jax.parallel.mesh import automatic_axes, constrain, sharding


def attention(q: Array, k: Array, v: Array, *, segment_ids: Array | None = None, **options) -> Array:
    """Causal self-attention [B, T, N, H] -> [B, T, N, H], wherever the rows, heads and times lie.

    Options as model.attention's. Time that its mesh axis cannot cut in equal halves, and dropout, leave the
    cutting to the compiler.
    """
    axes, T = automatic_axes(q), q.shape[1]
    shards = axes.get("sequence", 1)
    if shards == 1 or T % (2 * shards) or options.get("dropout"):
        q = constrain(q, ("batch", "time", "heads", None))
        k, v = (constrain(x, ("batch", None, "kv_heads", None)) for x in (k, v))
        return local_attention(q, k, v, segment_ids=segment_ids, **options)
    half = T // (2 * shards)
    swap, mesh = _exchange(shards), jax.typeof(q).sharding.mesh
    options = {name: value for name, value in options.items() if name not in ("dropout", "key")}

    def on(device: int):
        """What one device computes: offsets have to be known when a kernel is planned."""

        def attend(halves, k, v, ids):
            return tuple(
                local_attention(
                    part,
                    k,
                    v,
                    offset=chunk * half,
                    segment_ids=None if ids is None else ids[:, chunk * half : (chunk + 1) * half],
                    kv_segment_ids=ids,
                    **options,
                )
                for part, chunk in zip(halves, _chunks(device, shards), strict=True)
            )

        return attend

    def part(q, k, v, ids):
        halves = zip(jnp.split(q, 2, axis=1), swap, strict=True)
        halves = [lax.ppermute(x, "sequence", pairs) for x, pairs in halves]
        branches = [on(device) for device in range(shards)]
        halves = lax.switch(lax.axis_index("sequence"), branches, halves, k, v, ids)
        back = [[(to, source) for source, to in pairs] for pairs in swap]
        halves = [lax.ppermute(x, "sequence", pairs) for x, pairs in zip(halves, back, strict=True)]
        return jnp.concatenate(halves, axis=1)

    batch, _, heads, _ = sharding(mesh, ("batch", None, "kv_heads", None), k.shape).spec
    queries, keys = P(batch, "sequence", heads), P(batch, None, heads)
    mapped = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(queries, keys, keys, None if segment_ids is None else P(batch)),
        out_specs=queries,
        axis_names=set(axes),
        check_vma=False,
    )
    return mapped(q, k, v, segment_ids)


def _owner(chunk: int, shards: int) -> int:
    return min(chunk, 2 * shards - 1 - chunk)


def _exchange(shards: int) -> list[list[tuple[int, int]]]:
    """(from, to) of every device's first and second half; each of the two is a permutation."""
    return [[(d, _owner(2 * d + second, shards)) for d in range(shards)] for second in (0, 1)]


def _chunks(device: int, shards: int) -> tuple[int, int]:
    """The chunks that a device has then: first halves are the even ones."""
    mine = device, 2 * shards - 1 - device
    return mine if device % 2 == 0 else mine[::-1]
