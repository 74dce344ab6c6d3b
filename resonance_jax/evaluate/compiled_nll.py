"""Scoring one batch, compiled for a TPU slice that is not there: the program that token_nll would run."""

import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resonance_jax import rope
from resonance_jax.evaluate.nll import nll
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.lowering import lowering_for
from resonance_jax.model.parameters import abstract
from resonance_jax.parallel.compiled import Compiled, compile_for
from resonance_jax.parallel.mesh import sharding, whole_everywhere
from resonance_jax.parallel.topology import per_slice


def compile_nll(
    config: DecoderConfig, mesh: Mesh, rows: int, length: int, freqs: rope.Frequencies
) -> Compiled:
    """Lower and compile the NLL of every token of a batch; nothing is allocated and nothing runs.

    Args:
        config: the decoder; its dtype is that of the weights too, as load_hf makes them.
        mesh: over devices of parallel.topology.absent_devices.
        rows, length: of a batch [B, T].
        freqs: the encoding's table; only its shapes matter.
    """
    where = sharding(mesh, ("batch", None), (rows, length))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=where)
    began = time.monotonic()
    with lowering_for("tpu"):
        # Made anew: what was traced for another platform keeps its kernels.
        program = jax.jit(functools.partial(nll, config))
        lowered = program.lower(abstract(config, config.dtype, mesh), tokens, whole_everywhere(freqs, mesh))
    return compile_for(lowered, time.monotonic() - began, per_slice(mesh))
