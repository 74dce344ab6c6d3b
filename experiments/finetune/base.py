"""The decoder that a fine-tuning starts from: a checkpoint, another study's small model, or a new one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from configs.from_scratch import Config as FromScratch
from experiments.finetune.inputs import Inputs
from resonance_jax.command import default_folder, keep_result, kept_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.sharding import Mesh

    from resonance_jax import data
    from resonance_jax.digest import Identity
    from resonance_jax.model import Decoder

    Say = Callable[[str], None]


class Base:
    """The decoder to start from.

    Args:
        inputs: what the config names.
        folder: of the run.
        local: the same on this machine's disk. A base that is made here is saved as a checkpoint, local/base.
        tokens: of the text.
    """

    def __init__(self, inputs: Inputs, folder: Path, local: Path, tokens: data.TokenFile):
        self.inputs, self.folder, self.tokens = inputs, folder, tokens
        self.path = local / "base" if inputs.checkpoint is None else inputs.checkpoint.path
        self._record = local / "base.json"
        self.identity = self._identity()

    def _identity(self) -> Identity:
        """What the decoder is, or what it is made of."""
        from resonance_jax.parallel import distributed

        inputs, config = self.inputs, self.inputs.config
        if (checkpoint := inputs.checkpoint) is not None:
            return {
                "weights": distributed.of_first(checkpoint.weights_digest),
                "decoder": checkpoint.config.to_dict(),
                "encoding": checkpoint.rope.to_dict(),
            }
        if inputs.from_scratch is not None:
            from resonance_jax.model.digest import weights_digest

            return {"from_scratch": weights_digest(self._from_scratch(None).params)}
        return {
            "shape": inputs.shape.replace(dtype="float32", remat="none", kernel="auto").to_dict(),
            "seed": config.seed,
            "train_length": config.train_length,
            "pretraining": dataclasses.asdict(config.pretraining),
            "corpus": self.tokens.header["corpus"]["fingerprint"],
        }

    def load(self, mesh: Mesh | None, say: Say) -> Decoder:
        """The decoder on the mesh; made first where it is not there, is damaged or is of other inputs."""
        from resonance_jax import interop
        from resonance_jax.parallel import distributed

        if self.inputs.checkpoint is None and not distributed.first_says(self._is_there()):
            from jax import process_index

            lm = self._from_scratch(mesh) if self.inputs.from_scratch else self._fresh(mesh, say)
            if process_index() == 0:
                shutil.rmtree(self.path, ignore_errors=True)
            distributed.wait("base")
            interop.save_hf(lm, self.path)
            if process_index() == 0:
                keep_result(self._record, self.identity, {"weights": self._weights()})
        if self.inputs.from_scratch is not None:
            folder, theirs = self.inputs.from_scratch
            say(
                f"base: the RoPE model of experiments.from_scratch, {folder}, trained at "
                f"{theirs.train_length} positions"
            )
        return interop.load_hf(self.path, mesh=mesh)

    def _is_there(self) -> bool:
        """Whether local/base is what these inputs made, to the last bit."""
        kept = kept_result(self._record, self.identity)
        try:
            return kept is not None and kept["weights"] == self._weights()
        except ValueError:  # a file of it is missing
            return False

    def _weights(self) -> str:
        from resonance_jax import interop

        return interop.open_checkpoint(self.path).weights_digest()

    def _from_scratch(self, mesh: Mesh | None) -> Decoder:
        """The plain RoPE model of experiments.from_scratch."""
        from resonance_jax import train

        folder, theirs = self.inputs.from_scratch
        # Of its runs, the first: RoPE under the first seed.
        return train.saved_run(folder / "train" / "checkpoints", 0, theirs.shape(), self.inputs.own, mesh)

    def _fresh(self, mesh: Mesh | None, say: Say) -> Decoder:
        """A decoder of the stated shape, first trained under plain RoPE if that is asked for."""
        import jax

        from experiments.finetune.inputs import shape_named
        from resonance_jax import data, model, report, train

        config, own = self.inputs.config, self.inputs.own
        if config.from_scratch == "default":
            default = default_folder("from_scratch", FromScratch())
            say(f"base: no finished experiments.from_scratch in {default}, so one is trained here")
        shape, settings = shape_named(config.shape), config.pretraining
        lm = model.Decoder(shape, jax.random.key(config.seed), mesh=mesh, rope=own)
        if not settings.steps:
            return lm
        rows = f"{settings.batch_size} x {config.train_length}"
        say(f"base: {config.shape}, trained for {settings.steps} steps of {rows}")
        batches = data.Batches(self.tokens, config.train_length, settings.batch_size, config.seed)
        with report.training_progress("pretrain") as progress:
            return train.pretrain(
                lm, batches, settings, self.folder / "pretrain", config.keeping.save_seconds, progress
            )
