"""Small models trained on passkey texts, under RoPE, Resonance RoPE and YaRN."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.passkey import Config
from experiments.passkey.study import Asked, Study

if TYPE_CHECKING:
    from experiments.passkey.study import Place
    from resonance_jax import data, rope, train
    from resonance_jax.digest import Identity
    from resonance_jax.evaluate.passkey import Template
    from resonance_jax.model import DecoderConfig


class Trained(Study):
    """Models trained here under each encoding, all at L or shorter.

    Per seed one is trained under RoPE and one under Resonance RoPE, as far as the encodings ask for them, and
    from each a short fine-tuning under YaRN follows.
    """

    def __init__(self, config: Config):
        from resonance_jax import data, model, rope
        from resonance_jax.evaluate import passkey
        from resonance_jax.report.labels import FINETUNED

        super().__init__(config)
        self.tokenizer = data.tokenizer(config.tokenizer or "bytes", bos=config.bos)
        self.scale = max(1.0, max(config.lengths) / config.stages[-1])
        if config.scale is not None:
            self.scale = config.scale
        self.settings = {
            "head_dim": config.head_dim,
            "train_length": config.stages[-1],
            "scale": self.scale,
        }
        specs = [rope.named(name, **self.settings) for name in config.encodings]
        self.bare = {spec.title: spec for spec in specs}
        self.tuned = {
            spec.title + FINETUNED: spec
            for spec in sorted(self.bare.values(), key=lambda spec: spec.resonance)
            if spec.method == "yarn" and config.finetune_steps
        }
        self.seeds = list(dict.fromkeys(config.seeds))
        self.encodings = {seed: {**self.bare, **self.tuned} for seed in self.seeds}
        self.shape: DecoderConfig = model.small_llama(
            config.d_model,
            config.n_layers,
            config.head_dim,
            vocab_size=self.tokenizer.vocab_size,
            d_ff=2 * config.d_model,
        )
        for length in (*config.lengths, *config.stages):
            count = lambda text: len(data.prompt_ids(self.tokenizer, text))
            passkey.garbage_characters(self.wording, length, count)

    def decoder(self) -> tuple[str, int]:
        return "float32", self.config.head_dim

    def models_identity(self) -> Identity:
        c = self.config
        return {
            "trained": {
                "seeds": self.seeds,
                "shape": self.shape.to_dict(),
                "tokenizer": self.tokenizer.fingerprint,
                "stages": list(c.stages),
                "steps": list(c.stage_steps),
                "rows": list(c.stage_rows),
                "questions": c.questions,
                "lr": c.lr,
                "fine-tuning steps": c.finetune_steps,
                "fine-tuning lr": c.finetune_lr,
            }
        }

    def models(self, folder: Path, missing: Collection[Place]) -> Iterator[Asked]:
        import jax
        import numpy as np

        from resonance_jax import rope

        config, L = self.config, self.config.stages[-1]
        print(f"scale of the static methods: s = {self.scale:g}")
        trainer = _Trainer(config, folder, self.tokenizer, self.wording, self.shape)
        kinds = sorted({spec.resonance for spec in self.bare.values()})
        runs = [(seed, resonance) for seed in self.seeds for resonance in kinds]
        plain = [rope.named("resonance-rope" if r else "rope", **self.settings) for _, r in runs]
        base, broken = None, set()
        names = [f"{spec.title}, seed {seed}," for (seed, _), spec in zip(runs, plain, strict=True)]
        for i, (length, steps, rows) in enumerate(
            zip(config.stages, config.stage_steps, config.stage_rows, strict=True)
        ):
            last = i == len(config.stages) - 1
            base = trainer.fit(
                f"{i}-{length}",
                [seed for seed, _ in runs],
                plain,
                length,
                rows,
                steps,
                questions=1 if last else config.questions,
                lr=config.lr,
                schedule="cosine" if last else "constant",
                params=None if base is None else base.params,
            )
            self.remarks += base.failures(names)
            broken |= {(label, runs[e]) for e in base.failed for label in (*self.bare, *self.tuned)}
        assert base is not None  # because there is a stage
        found = {(label, run): base.lm(i) for i, run in enumerate(runs) for label in self.bare}
        yarn = {spec.resonance: spec for spec in self.tuned.values()}
        again = [run for run in runs if run[1] in yarn]
        if again:
            own = np.array([runs.index(run) for run in again])
            tuned = trainer.fit(
                "fine-tune",
                [seed for seed, _ in again],
                [yarn[r] for _, r in again],
                L,
                config.stage_rows[-1],
                config.finetune_steps,
                questions=1,
                lr=config.finetune_lr,
                schedule="cosine",
                params=jax.tree.map(lambda x: x[own], base.params),
            )
            found |= {(label, run): tuned.lm(i) for i, run in enumerate(again) for label in self.tuned}
            names = [f"{yarn[r].title}, fine-tuned, seed {seed}," for seed, r in again]
            self.remarks += tuned.failures(names)
            broken |= {(label, again[i]) for i in tuned.failed for label in self.tuned}
        for seed, labels in self.encodings.items():
            for label, spec in labels.items():
                if (label, (seed, spec.resonance)) in broken:
                    continue
                yield Asked(label, spec, seed, found[label, (seed, spec.resonance)], self.tokenizer)


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """Trains small models of the config's shape on passkey texts."""

    config: Config
    folder: Path
    tokenizer: data.Tokenizer
    wording: Template
    shape: DecoderConfig

    def fit(
        self,
        name: str,
        seeds: Sequence[int],
        specs: Sequence[rope.RopeSpec],
        length: int,
        rows: int,
        steps: int,
        questions: int,
        lr: float,
        schedule: str,
        params: dict | None,
    ) -> train.ManyRuns:
        """One run per seed and encoding, all at once; a seed's runs see the same texts."""
        import jax
        import numpy as np

        from resonance_jax import report, train
        from resonance_jax.evaluate import passkey

        def batches(step: int) -> dict[str, np.ndarray]:
            by_seed = {
                seed: passkey.training_batch(
                    self.wording, self.tokenizer, length, rows, seed, step, questions
                )
                for seed in self.config.seeds
            }
            return jax.tree.map(lambda *x: np.stack(x), *[by_seed[seed] for seed in seeds])

        optimizer = train.OptimizerConfig(
            lr=lr, beta2=0.98, weight_decay=0.01, schedule=schedule, warmup=0.05, clip=1.0
        )
        with report.training_progress(f"train {name}") as progress:
            return train.fit_many(
                self.shape,
                seeds,
                specs,
                batches,
                train.TrainConfig(
                    steps,
                    optimizer,
                    micro=max(1, min(rows, 2048 // length)),  # what stays in a core's cache
                ),
                self.folder / f"train-{name}",
                params=params,
                progress=progress,
            )
