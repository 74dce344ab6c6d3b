"""The training step compiled for a TPU slice that is not there: the very program that `fit` would run."""

import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.lowering import lowering_for
from resonance_jax.parallel.compiled import Compiled, compile_for
from resonance_jax.parallel.mesh import sharding, whole_everywhere
from resonance_jax.parallel.topology import per_slice
from resonance_jax.settings.lora import LoraConfig
from resonance_jax.train.batches import check_rows
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.run_program import RunProgram


def compile_step(
    config: DecoderConfig,
    training: TrainConfig,
    mesh: Mesh,
    rows: int,
    length: int,
    freqs: rope.Frequencies,
    lora: LoraConfig | None = None,
) -> Compiled:
    """Lower and compile one optimizer step; nothing is allocated and nothing runs.

    Args:
        config: the decoder.
        training: the optimizer, and the rows of a micro-batch.
        mesh: over devices of parallel.topology.absent_devices.
        rows, length: of a batch [B, T].
        freqs: the encoding's table; only its shapes matter.
        lora: adapters, if they are what is trained.

    Raises:
        ValueError: rows that the mesh or the micro-batches do not divide.
    """
    check_rows(rows, training.micro, mesh)
    where = sharding(mesh, ("batch", "time"), (rows, length))
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=where) for name in ("tokens", "labels")
    }
    began = time.monotonic()
    with lowering_for("tpu"):
        program = RunProgram(config, training, mesh, lora)
        lowered = program.step.lower(program.like, program.frozen_like, batch, whole_everywhere(freqs, mesh))
    return compile_for(lowered, time.monotonic() - began, per_slice(mesh))
