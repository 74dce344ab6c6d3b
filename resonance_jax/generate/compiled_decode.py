"""A decoding step, compiled for a TPU slice that is not there: one more token per row over a cache."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from resonance_jax import rope
from resonance_jax.generate.cache import AXES, Cache, empty
from resonance_jax.generate.decode import decode_step
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.lowering import lowering_for
from resonance_jax.model.parameters import abstract
from resonance_jax.parallel.compiled import Compiled, compile_for
from resonance_jax.parallel.mesh import sharding, whole_everywhere
from resonance_jax.parallel.topology import per_slice


def compile_decode_step(
    config: DecoderConfig, mesh: Mesh, rows: int, capacity: int, freqs: rope.Frequencies
) -> Compiled:
    """Lower and compile one step of decoding, the cache written in place; nothing is allocated and run.

    Args:
        config: the decoder; its dtype is that of the weights and of the cache.
        mesh: over devices of parallel.topology.absent_devices.
        rows: of the batch.
        capacity: tokens that a row of the cache has room for.
        freqs: the encoding's table; only its shapes matter.
    """
    tokens = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=sharding(mesh, ("batch",), (rows,)))
    began = time.monotonic()
    with lowering_for("tpu"):
        step = jax.jit(functools.partial(decode_step, config), donate_argnums=1)
        cache = _cache_like(config, mesh, rows, capacity, freqs)
        lowered = step.lower(abstract(config, config.dtype, mesh), cache, tokens)
    return compile_for(lowered, time.monotonic() - began, per_slice(mesh))


def _cache_like(
    config: DecoderConfig, mesh: Mesh, rows: int, capacity: int, freqs: rope.Frequencies
) -> Cache:
    """A cache that holds tokens, as ShapeDtypeStructs where it lies."""
    table = whole_everywhere(freqs, mesh)
    held = jax.eval_shape(lambda: empty(config, rows, capacity, freqs).advanced(1))
    stack = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, AXES, x.shape))
    lengths = jax.ShapeDtypeStruct((rows,), np.int32, sharding=sharding(mesh, ("batch",), (rows,)))
    return dataclasses.replace(
        held, keys=stack(held.keys), values=stack(held.values), lengths=lengths, freqs=table
    )
