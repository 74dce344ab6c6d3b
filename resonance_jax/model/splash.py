"""The TPU's splash attention kernel behind our shapes: [B, T, N, H], any T and H, grouped heads, a mesh.

The kernel itself is jax.experimental.pallas.ops.tpu.splash_attention; it wants [N, T, H] without a batch,
queries scaled beforehand, lengths that its blocks divide, and, on a mesh, one call a device.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, PartitionSpec

from resonance_jax.parallel.mesh import RULES

LANES = 128


def splash(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    window: int | None,
    segment_ids: Array | None,
    offset: int,
    scale: float,
    interpret: bool = False,
) -> Array:
    """Splash attention; arguments as `attention`'s, every query seeing at least one key.

    interpret: run the kernel step by step on any backend, which is slow and meant for tests.
    """
    specs = _specs(q, k)
    one_device = lambda q, k, v, segment_ids: _splash(
        q, k, v, segment_ids, causal, window, offset, scale, interpret
    )
    if specs is None:
        return one_device(q, k, v, segment_ids)
    heads, ids = specs
    mesh = jax.typeof(q).sharding.mesh
    in_specs = (heads, heads, heads, None if segment_ids is None else ids)
    mapped = jax.shard_map(one_device, mesh=mesh, in_specs=in_specs, out_specs=heads, check_vma=False)
    return mapped(q, k, v, segment_ids)


def _specs(q, k):
    """How [B, T, N, H] and [B, T] lie on the trace's mesh: the compiler cannot cut a Pallas kernel."""
    mesh = jax.typeof(q).sharding.mesh
    auto = [n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]

    def along(logical, size):
        names = tuple(name for name in RULES[logical] if name in auto)
        return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

    if math.prod(mesh.shape[name] for name in auto) == 1:
        return None
    batch, heads = along("batch", q.shape[0]), along("kv_heads", k.shape[2])
    return PartitionSpec(batch, None, heads, None), PartitionSpec(batch, None)


def _splash(q, k, v, segment_ids, causal, window, offset, scale, interpret):
    # Pallas takes a third of a second to import.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernel

    T, N, H = q.shape[1:]
    S = k.shape[1]
    rows, columns = _block(T), _block(S)
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = (_pad(x.swapaxes(1, 2), block) for x, block in ((q, rows), (k, columns), (v, columns)))
    shape = q.shape[2], k.shape[2]
    if segment_ids is not None:
        mine, theirs = segment_ids, segment_ids
    elif shape[1] > S and (not causal or offset + T > S):  # otherwise no query sees the padded keys
        mine, theirs = jnp.zeros((q.shape[0], T), jnp.int32), jnp.zeros((q.shape[0], S), jnp.int32)
    else:
        mine = theirs = None
    segments = None
    if mine is not None:
        fill = lambda ids, size: jnp.pad(
            ids, ((0, 0), (0, size - ids.shape[1])), constant_values=jnp.iinfo(jnp.int32).min
        )
        segments = kernel.SegmentIds(fill(mine, shape[0]), fill(theirs, shape[1]))
    if window is not None:
        mask = kernel.LocalMask(shape, (window - 1, 0), offset)
    elif causal:
        mask = kernel.CausalMask(shape, offset)
    else:
        mask = kernel.FullMask(shape)
    blocks = kernel.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    run = kernel.make_splash_mha_single_device(
        kernel.MultiHeadMask([mask] * N), block_sizes=blocks, interpret=interpret
    )
    return jax.vmap(run)(q, k, v, segments)[:, :, :T, :H].swapaxes(1, 2)


def _block(length):
    return 512 if length >= 2048 else 256 if length >= 1024 else LANES


def _pad(x, block):
    """[B, N, T, H] with T a multiple of the block, and H 64 or a multiple of the lanes."""
    H = x.shape[-1]
    head = 64 if H <= 64 else -(-H // LANES) * LANES
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, head - H)))
