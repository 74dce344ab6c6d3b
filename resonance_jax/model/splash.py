"""JAX's splash attention kernel for TPUs, for our shapes: [B, T, N, H], any T and H, grouped heads, a mesh.

The kernel itself is jax.experimental.pallas.ops.tpu.splash_attention; it takes [N, T, H] without a batch,
queries that are scaled already, lengths that its blocks divide, and, on a mesh, one call per device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from resonance_jax.model.block_pairs import SAVED
from resonance_jax.parallel.mesh import RULES, automatic_axes

LANES = 128


def splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool,
    window: int | None,
    segment_ids: Int[Array | np.ndarray, "B T"] | None,
    offset: int,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Softmax attention in which every query sees at least one key.

    Args:
        q, k, v, causal, window, segment_ids, scale: as for `attention`, all of them given.
        offset: as for `attention`, but an int.
        interpret: run the kernel step by step on any device, which is slow and meant for tests.
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


def _along(axes: dict[str, int], logical: str, size: int) -> tuple[str, ...] | None:
    """The mesh axes that a dimension lies along.

    Args:
        axes: the sizes of the mesh axes.
        logical: the logical axis of the dimension, a name in RULES.
        size: of the dimension.
    """
    names = tuple(name for name in RULES[logical] if name in axes)
    return names if names and size % math.prod(axes[name] for name in names) == 0 else None


def _splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids: Int[Array | np.ndarray, "B T"] | None,
    causal: bool,
    window: int | None,
    offset: int,
    scale: float,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """`splash` on one device."""
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
    sizes = kernels.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
    )
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * N),
        block_sizes=sizes,
        residual_checkpoint_name=SAVED[0],
        interpret=interpret,
    )
    out = jax.vmap(kernel)(q, k, v, segments)
    assert isinstance(out, jax.Array)  # the kernel can also give its residuals, which were not asked for
    return out[:, :, :T, :H].swapaxes(1, 2)


def _block(length: int) -> int:
    """Positions in a block of the kernel."""
    return 512 if length >= 2048 else 256 if length >= 1024 else LANES


def _pad(x: Float[Array, "B N T H"], block: int) -> Float[Array, "B N padded head"]:
    """x with T padded to a multiple of the block, and H to 64 or a multiple of the lanes."""
    H = x.shape[-1]
    head = 64 if H <= 64 else -(-H // LANES) * LANES
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, head - H)))


def _pad_ids(ids: Int[Array | np.ndarray, "B T"], length: int) -> Int[Array, "B {length}"]:
    """Segments padded to a length with one that no token has."""
    return jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=jnp.iinfo(jnp.int32).min)
