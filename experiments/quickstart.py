"""A real pretrained LLaMA, extended past its training length by every RoPE method, without any training.

    python -m experiments.quickstart            (or: make quickstart)

Figures are printed as they come. Stop it at any time: the same command goes on where it was.
configs/quickstart.py has every setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from configs.quickstart import Config
from resonance_jax.command import (
    device_line,
    keep_result,
    kept_result,
    main,
    open_run,
    use_every_core,
    use_precision,
)
from resonance_jax.command.bounds import check_at_least
from resonance_jax.files import read_json

if TYPE_CHECKING:
    from resonance_jax import evaluate, rope
    from resonance_jax.digest import Identity
    from resonance_jax.evaluate.documents import Ids
    from resonance_jax.model import Decoder

    Results = dict[str, dict[str, dict[int, evaluate.Perplexity]]]
    """By document, then by label, then by length."""

EVERYWHERE = ("yarn", "resonance-yarn")
"""What every document is scored under, beside the checkpoint's own encoding, whose figures come first."""
FIRST_ONLY = ("ntk", "dynamic_ntk")
"""What the first document is scored under as well."""


def run(config: Config) -> None:
    """Score what is missing, printing each figure as it comes, then the tables."""
    from resonance_jax.report.quickstart import show

    _check(config)
    use_every_core()
    use_precision(config.precision)
    study = Study(config)
    folder = open_run("quickstart", config)
    identity = study.identity()
    result = kept_result(folder / "quickstart.json", identity)
    if result is None:
        study.run(folder, identity)
        result = read_json(folder / "quickstart.json")
    show(result, folder)


def _check(config: Config) -> None:
    """Raise ValueError before anything is read or made."""
    check_at_least(config, 1, "documents", "scale")
    check_at_least(config, 2, "every")
    if config.every > config.length:
        raise ValueError(
            f"--every must be at most --length, got {config.every:,} and {config.length:,}: there would be "
            "no figure."
        )


class Study:
    """The checkpoint, its encodings by title, and the documents.

    Raises ValueError where the checkpoint is not there, and where no document is long enough.
    """

    def __init__(self, config: Config):
        from resonance_jax import data, evaluate, interop, rope
        from resonance_jax.evaluate.perplexity_protocols import Windowing

        self.config = config
        self.checkpoint = interop.open_checkpoint(config.checkpoint)
        self.tokenizer = self.checkpoint.tokenizer()
        self.text = data.corpus(config.corpus).split("all")
        self.lengths = [*range(config.every, config.length, config.every), config.length]
        own = self.checkpoint.rope
        make = lambda name: rope.restate_for_length(own, name, config.length, scale=config.scale)
        self.everywhere = {spec.title: spec for spec in (own, *map(make, EVERYWHERE))}
        self.first_only = {spec.title: spec for spec in map(make, FIRST_ONLY)}
        self.chosen = evaluate.first_documents(
            self.text,
            self.tokenizer,
            config.documents,
            Windowing("prefix", 1, self.tokenizer.bos_id, False).tokens_needed(config.length),
            self.checkpoint.config.vocab_size,
        )
        if not self.chosen.documents:
            raise ValueError(
                f"{config.corpus}: none of its {self.chosen.short} documents has the "
                f"{self.chosen.min_tokens:,} tokens that are needed; give longer ones, or lower --length."
            )

    def identity(self) -> Identity:
        """What the result depends on."""
        from resonance_jax.command.checkpoints import checkpoint_identity
        from resonance_jax.model.lowering import stated_precision

        return {
            "checkpoint": checkpoint_identity(self.checkpoint, self.tokenizer),
            "documents": self.chosen.digest(),
            "encodings": [spec.to_dict() for spec in (self.everywhere | self.first_only).values()],
            "lengths": self.lengths,
            "dtype": "float32",
            **stated_precision(),
        }

    def run(self, folder: Path, identity: Identity) -> None:
        """Score every document, the first one under every encoding, and write down what was found."""
        from resonance_jax import interop, report
        from resonance_jax.interop.named_checkpoints import title
        from resonance_jax.report import quickstart

        lm, L = interop.load_hf(self.checkpoint.path, dtype="float32"), self.checkpoint.rope.train_length
        model = title(self.config.checkpoint)
        trained = "" if L is None else f", trained at {L:,}"
        print(
            f"{device_line('float32', self.config.length, lm.config.head_dim)}\n"
            f"model: {model}, {lm.count_parameters() / 1e6:,.0f} M parameters{trained}\n"
            f"text: {self.config.corpus}: {', '.join(self.chosen.names)}"
        )
        every = self.everywhere | self.first_only
        jobs = [
            (name, ids, label, spec)
            for i, (name, ids) in enumerate(zip(self.chosen.names, self.chosen.documents, strict=True))
            for label, spec in (self.everywhere if i else every).items()
        ]
        results: Results = {name: {} for name in self.chosen.names}
        head = quickstart.Heading(model, self.text.describe(), L)
        with report.Progress("scored", {"now": str}, first="compiling") as progress:
            for done, (name, ids, label, spec) in enumerate(jobs):
                progress(done, len(jobs), now=f"{label} on {name}")
                results[name][label] = found = self._score(lm, ids, spec, folder / "nll" / f"{done:02d}")
                progress.say(f"{name}, {quickstart.line(label, found, L)}")
                if done == len(every) - 1:
                    quickstart.write(folder, results, every, head)
                    progress.say(f"first document done: {folder}/perplexity.png")
            progress(len(jobs), len(jobs))
        keep_result(folder / "quickstart.json", identity, quickstart.write(folder, results, every, head))

    def _score(
        self, lm: Decoder, ids: Ids, spec: rope.RopeSpec, folder: Path
    ) -> dict[int, evaluate.Perplexity]:
        """A document under one encoding: at every length at once, of a dynamic one at the longest."""
        from resonance_jax import evaluate

        lengths = self.lengths[-1:] if spec.dynamic else self.lengths
        bos = self.tokenizer.bos_id
        return evaluate.sweep(lm, [ids], spec, lengths, bos_id=bos, store=evaluate.Store(folder))


if __name__ == "__main__":
    main(run, Config, __doc__)
