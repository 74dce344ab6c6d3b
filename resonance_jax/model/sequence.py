"""Attention when time is cut over the mesh axis `sequence`: queries stay cut, keys and values are gathered.

Causal queries near the end see more keys than those near the start. So the devices exchange halves of their
queries before attention: device d works on half d and half 2n-1-d of the 2n there are, which is the same work
for all n devices (the zigzag of Llama 3's context parallelism, Dubey et al. 2024, section 3.3.2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from resonance_jax.model.kernel_choice import attention as local_attention
from resonance_jax.parallel.mesh import automatic_axes, constrain, sharding

_Ids = Int[Array | np.ndarray, "B T"] | None
_Half = Float[Array, "B half N H"]


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    kernel: str = "auto",
) -> Float[Array, "B T N H"]:
    """Causal self-attention on any mesh, or on none.

    Where the mesh axis `sequence` does not divide time into equal halves, and for dropout, the compiler
    decides how the work is cut.

    Args:
        q, k, v, segment_ids, window, scale, dropout, key, kernel: as for model.attention.
    """
    axes, T = automatic_axes(q), q.shape[1]
    shards = axes.get("sequence", 1)
    if shards == 1 or T % (2 * shards) or dropout:
        q = constrain(q, ("batch", "time", "heads", None))
        k, v = (constrain(x, ("batch", None, "kv_heads", None)) for x in (k, v))
        return local_attention(
            q,
            k,
            v,
            segment_ids=segment_ids,
            window=window,
            scale=scale,
            dropout=dropout,
            key=key,
            kernel=kernel,
        )
    half = T // (2 * shards)
    swap, mesh = _exchange(shards), jax.typeof(q).sharding.mesh

    def on(
        device: int,
    ) -> Callable[[list[_Half], Float[Array, "B T K H"], Float[Array, "B T K H"], _Ids], tuple[_Half, _Half]]:
        """What one device computes: offsets have to be known when a kernel is planned."""

        def attend(
            halves: list[_Half], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], ids: _Ids
        ) -> tuple[_Half, _Half]:
            first, second = (
                local_attention(
                    part,
                    k,
                    v,
                    offset=chunk * half,
                    segment_ids=None if ids is None else ids[:, chunk * half : (chunk + 1) * half],
                    kv_segment_ids=ids,
                    window=window,
                    scale=scale,
                    kernel=kernel,
                )
                for part, chunk in zip(halves, _chunks(device, shards), strict=True)
            )
            return first, second

        return attend

    def part(
        q: Float[Array, "B local N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], ids: _Ids
    ) -> Float[Array, "B local N H"]:
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
    """The device that works on a chunk, half of a device's time."""
    return min(chunk, 2 * shards - 1 - chunk)


def _exchange(shards: int) -> list[list[tuple[int, int]]]:
    """(from, to) of every device's first and second half; each of the two is a permutation."""
    return [[(d, _owner(2 * d + second, shards)) for d in range(shards)] for second in (0, 1)]


def _chunks(device: int, shards: int) -> tuple[int, int]:
    """The two chunks that a device works on, the even one first (the first half of its device's time)."""
    mine, far = device, 2 * shards - 1 - device
    return (mine, far) if device % 2 == 0 else (far, mine)
