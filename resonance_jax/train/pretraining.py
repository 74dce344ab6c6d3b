"""A short training of a fresh decoder under the encoding that it states, before it is fine-tuned."""

from resonance_jax.files import AnyPath
from resonance_jax.model.decoder import Decoder
from resonance_jax.settings.optimizer import OptimizerConfig
from resonance_jax.settings.pretraining import PretrainConfig
from resonance_jax.train.batches import Batches, micro_rows, size
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.loop import Progress
from resonance_jax.train.one_run import fit


def pretrain(
    lm: Decoder,
    batches: Batches,
    config: PretrainConfig,
    run_dir: AnyPath,
    save_seconds: float = 30.0,
    progress: Progress | None = None,
) -> Decoder:
    """Train a decoder under lm.rope with a cosine schedule; go on from what run_dir holds.

    Args:
        lm: the decoder with its first weights; it has to state an encoding.
        batches: as for train.fit.
        config: how many steps, and the peak learning rate.
        run_dir: of this training.
        save_seconds: between checkpoints.
        progress: as for train.fit.

    Raises:
        ValueError: when lm states no encoding, and as train.fit does.
    """
    if lm.rope is None:
        raise ValueError("pretraining needs a decoder that states its encoding (lm.rope is None).")
    rows, length = size(batches)
    shards = 1 if lm.mesh is None else lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
    optimizer = OptimizerConfig(config.lr, weight_decay=0.1, schedule="cosine", clip=1.0)
    training = TrainConfig(
        config.steps, optimizer, micro=micro_rows(rows, length, shards), save_seconds=save_seconds
    )
    return fit(lm, batches, lm.rope, training, run_dir, progress=progress).lm
