"""Models are asked for keys, cell by cell; each kept cell states the models and prompts that it is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.passkey import Config
from resonance_jax.command import device_line, keep_result
from resonance_jax.files import write_json, write_text

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from resonance_jax import data, rope
    from resonance_jax.digest import Identity
    from resonance_jax.interop import Checkpoint
    from resonance_jax.model import Decoder
    from resonance_jax.report.passkey import ModelCell

    Place = tuple[str, int | str, int, float]
    """Of a cell: the encoding's label, the model (its seed, or the checkpoint's name), length and depth."""

FOUND = ("encoding", "model", "length", "depth", "right", "trials")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A decoder that is asked for keys under an encoding. model: its seed, or the checkpoint's name."""

    label: str
    spec: rope.Specs
    model: int | str
    lm: Decoder
    tokenizer: data.Tokenizer


class Study:
    """Models, and the grid of cells that each is asked under each of its encodings.

    Attributes:
        encodings: by model, then by label.
        remarks: sentences on models that could not be asked.
    """

    encodings: dict[int | str, dict[str, rope.Specs]]

    def __init__(self, config: Config):
        from resonance_jax.evaluate import passkey

        self.config, self.wording = config, passkey.template(config.template)
        self.remarks: list[str] = []
        self.cells = [
            (length, depth)
            for length in dict.fromkeys(config.lengths)
            for depth in dict.fromkeys(config.depths)
        ]

    def models(self, folder: Path, missing: Collection[Place]) -> Iterator[Asked]:
        """The models that are needed for these cells."""
        raise NotImplementedError

    def models_identity(self) -> Identity:
        """What the models depend on, their tokenizers included."""
        raise NotImplementedError

    def decoder(self) -> tuple[str, int]:
        """The dtype and the head size of the (first) model."""
        raise NotImplementedError

    def specs(self) -> dict[str, rope.Specs]:
        """Every encoding by its label."""
        return {label: spec for some in self.encodings.values() for label, spec in some.items()}

    def identity(self) -> Identity:
        """What the result depends on."""
        import jax

        from resonance_jax.model.lowering import default_precision

        return {
            "models": self.models_identity(),
            "encodings": {label: spec.to_dict() for label, spec in self.specs().items()},
            "wording": dataclasses.asdict(self.wording),
            "lengths": list(dict.fromkeys(self.config.lengths)),
            "depths": list(dict.fromkeys(self.config.depths)),
            "trials": self.config.trials,
            "seed": self.config.seed,
            "platform": jax.default_backend(),
            "precision": default_precision(),
        }

    def result(self, folder: Path, identity: Identity) -> dict:
        """Ask for the cells that were not asked for under these inputs, and write down what was found."""
        import time

        from resonance_jax import report, rope
        from resonance_jax.evaluate import passkey
        from resonance_jax.evaluate.journal import Journal
        from resonance_jax.parallel.distributed import of_first

        began, config = time.monotonic(), self.config
        longest = max(config.lengths)
        dtype, head_dim = self.decoder()
        print(device_line(dtype, longest, head_dim))
        records = {
            label: rope.to_record(rope.frequencies(spec, length=longest), spec)
            for label, spec in self.specs().items()
        }
        of_first(lambda: write_json(folder / "encodings.json", records))
        journal = Journal(folder / "cells.jsonl", identity)
        wanted = [
            (label, model, *cell)
            for model, labels in self.encodings.items()
            for label in labels
            for cell in self.cells
        ]
        known = {_place(cell) for cell in journal.records}
        missing = [place for place in wanted if place not in known]
        models = self.models(folder, missing) if missing else ()
        with report.Progress("cells", {"encoding": str}) as progress:
            done = len(wanted) - len(missing)
            for m in models:
                for length, depth in self.cells:
                    if (m.label, m.model, length, depth) not in missing:
                        continue
                    progress(done, len(wanted), encoding=m.label)
                    options = {"seed": config.seed, "batch_size": config.batch_size}
                    asked = m.lm, m.tokenizer, m.spec, self.wording, length, depth, config.trials
                    journal.append({"encoding": m.label, "model": m.model, **passkey.cell(*asked, **options)})
                    done += 1
            progress(done, len(wanted))
        by_place = {_place(cell): cell for cell in journal.records}
        cells = [by_place[place] for place in wanted if place in by_place]
        if not cells:
            raise ValueError(f"no model could be asked. {' '.join(self.remarks)}")
        seconds = time.monotonic() - began
        return of_first(lambda: write_results(folder, config, cells, self.remarks, seconds, identity))


def _place(cell: ModelCell) -> Place:
    return cell["encoding"], cell["model"], cell["length"], cell["depth"]


class Checkpoints(Study):
    """Every checkpoint under each of its encodings, read by its own tokenizer."""

    def __init__(self, config: Config, mesh: Mesh | None = None):
        from resonance_jax.command.checkpoints import encodings_of, named_checkpoints, tokenizer_of

        super().__init__(config)
        self.mesh = mesh
        self.checkpoints = named_checkpoints(config.checkpoints)
        reach, asked = max(config.lengths), {"scale": config.scale, "train_length": config.train_length}
        self.encodings = {
            name: encodings_of(c.rope, config.encodings, name, list(self.checkpoints), reach, **asked)
            for name, c in self.checkpoints.items()
        }
        self.tokenizers = {
            name: tokenizer_of(c, config.tokenizer, config.bos) for name, c in self.checkpoints.items()
        }
        for name, checkpoint in self.checkpoints.items():
            self._check_prompts(name, checkpoint)

    def _check_prompts(self, name: str, checkpoint: Checkpoint) -> None:
        """Raise ValueError where the wording does not fit, or is no tokens of the model's, in any length."""
        from resonance_jax import data
        from resonance_jax.evaluate import passkey

        depth = self.config.depths[0]
        for length in dict.fromkeys(self.config.lengths):
            _, prompts = passkey.questions(self.wording, self.tokenizers[name], length, depth, 1)
            data.check_ids(prompts[0], checkpoint.config.vocab_size, f"A prompt for {name}")

    def decoder(self) -> tuple[str, int]:
        return self.config.dtype, next(iter(self.checkpoints.values())).config.head_dim

    def models_identity(self) -> Identity:
        from resonance_jax.command.checkpoints import checkpoint_identity

        found = {name: checkpoint_identity(c, self.tokenizers[name]) for name, c in self.checkpoints.items()}
        return {"checkpoints": found, "dtype": self.config.dtype}

    def models(self, folder: Path, missing: Collection[Place]) -> Iterator[Asked]:
        from resonance_jax import interop
        from resonance_jax.command.checkpoints import scale_note

        needed = {model for _, model, *_ in missing}
        for name, checkpoint in self.checkpoints.items():
            if name not in needed:
                continue
            lm = interop.load_hf(checkpoint.path, dtype=self.config.dtype, mesh=self.mesh)
            for label, spec in self.encodings[name].items():
                if note := scale_note(spec, checkpoint.rope, self.config.scale, max(self.config.lengths)):
                    print(f"{label}: {note}")
                yield Asked(label, spec, name, lm, self.tokenizers[name])


def write_results(
    folder: Path,
    config: Config,
    cells: Sequence[ModelCell],
    remarks: Sequence[str],
    seconds: float,
    identity: Identity,
) -> dict:
    """passkey.csv, passkey.png, and last passkey.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report import passkey
    from resonance_jax.report.passkey_differences import differences, shown

    rows = passkey.rows(cells)
    write_text(folder / "passkey.csv", report.csv_text(rows))
    models = f", {len(config.seeds)} models each" if config.seeds else ""
    trials = config.trials * max(1, len(config.seeds))
    title = f"Passkey, template {config.template}{models}: keys found of {trials} per cell (%)"
    passkey.heat_map(rows, folder / "passkey.png", title)
    result = {
        "table": passkey.table(cells),
        "differences": [shown(row) for row in differences(cells)],
        "template": config.template,
        "left_out": list(remarks),
        "columns of found": FOUND,
        "found": [[cell[name] for name in FOUND] for cell in cells],
        "machine": report.machine(),
        "seconds_of_the_last_call": round(seconds, 1),
    }
    keep_result(folder / "passkey.json", identity, result)
    return result
