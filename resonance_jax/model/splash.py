"""The TPU's splash attention kernel behind our shapes: [B, T, N, H], any T and H, grouped heads, a mesh.

The kernel itself is jax.experimental.pallas.ops.tpu.splash_attention; it wants [N, T, H] without a batch,
queries scaled beforehand, lengths that its blocks divide, and, on a mesh, one call a device.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from resonance_jax.model.block_pairs import SAVED
from resonance_jax.parallel.mesh import RULES, automatic_axes

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
    one_device = lambda q, k, v, segment_ids: _splash(
        q, k, v, segment_ids, causal, window, offset, scale, interpret
    )
    axes = automatic_axes(q)
    if math.prod(axes.values()) == 1:
        return one_device(q, k, v, segment_ids)
    # The compiler cannot cut a Pallas kernel: every device is told to run it on its own rows and heads.
    batch, heads = _along(axes, "batch", q.shape[0]), _along(axes, "kv_heads", k.shape[2])
    whole, ids = PartitionSpec(batch, None, heads), None if segment_ids is None else PartitionSpec(batch)
    mapped = jax.shard_map(
        one_device,
        mesh=jax.typeof(q).sharding.mesh,
        in_specs=(whole, whole, whole, ids),
        out_specs=whole,
        axis_names=set(axes),
        check_vma=False,
    )
    return mapped(q, k, v, segment_ids)


def _along(axes, logical, size):
    """The mesh axes that a dimension of this size lies along."""
    names = tuple(name for name in RULES[logical] if name in axes)
    return names if names and size % math.prod(axes[name] for name in names) == 0 else None


def _splash(q, k, v, segment_ids, causal, window, offset, scale, interpret):
    # Imported here because it brings all of Pallas.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    B, T, N, H = q.shape
    S = k.shape[1]
    rows, columns = _block(T), _block(S)
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = (_pad(x.swapaxes(1, 2), block) for x, block in ((q, rows), (k, columns), (v, columns)))
    lengths = q.shape[2], k.shape[2]
    if segment_ids is None and lengths[1] > S and (not causal or offset + T > S):
        # Some query would see the padded keys, if they were not a segment of their own.
        segments = jnp.zeros((B, T), jnp.int32), jnp.zeros((B, S), jnp.int32)
    else:
        segments = None if segment_ids is None else (segment_ids, segment_ids)
    if segments is not None:
        segments = kernels.SegmentIds(*(_pad_ids(ids, to) for ids, to in zip(segments, lengths, strict=True)))
    if window is not None:
        mask = kernels.LocalMask(lengths, (window - 1, 0), offset)
    else:
        mask = kernels.CausalMask(lengths, offset) if causal else kernels.FullMask(lengths)
    sizes = dict(block_q=rows, block_kv=columns)
    sizes |= dict(block_q_dq=rows, block_kv_dq=columns, block_q_dkv=rows, block_kv_dkv=columns)
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * N),
        block_sizes=kernels.BlockSizes(**sizes),
        residual_checkpoint_name=SAVED[0],
        interpret=interpret,
    )
    return jax.vmap(kernel)(q, k, v, segments)[:, :, :T, :H].swapaxes(1, 2)


def _block(length):
    return 512 if length >= 2048 else 256 if length >= 1024 else LANES


def _pad(x, block):
    """[B, N, T, H] with T a multiple of the block, and H 64 or a multiple of the lanes."""
    H = x.shape[-1]
    head = 64 if H <= 64 else -(-H // LANES) * LANES
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, head - H)))


def _pad_ids(ids, length):
    return jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=jnp.iinfo(jnp.int32).min)
