"""One of many runs as a decoder, read from the checkpoint that their training left."""

import jax
from jax.sharding import Mesh

from resonance_jax import rope
from resonance_jax.files import AnyPath
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder
from resonance_jax.train.checkpoint import saved_params


def saved_run(
    checkpoints: AnyPath, run: int, config: DecoderConfig, spec: rope.Specs, mesh: Mesh | None = None
) -> Decoder:
    """Run number `run` of the newest checkpoint that train.fit_many left, on a mesh.

    Args:
        checkpoints: the folder `checkpoints` of a run folder.
        run: which of the runs.
        config: the decoder that they trained.
        spec: the encoding that this run was trained under.
        mesh: where its parameters go; None: one device.

    Raises:
        ValueError: there is no checkpoint, or the newest one is damaged.
    """
    params = jax.tree.map(lambda x: x[run], saved_params(checkpoints))
    lm = Decoder(config, mesh=mesh, rope=spec, params=params)
    return lm.replace_params(jax.device_put(params, None if mesh is None else lm.shardings()))
