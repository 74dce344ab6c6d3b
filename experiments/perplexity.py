"""Perplexity against context length: checkpoints x encodings x corpora x lengths, in one resumable run.

    python -m experiments.perplexity sweep --checkpoints base=PATH --corpora stdlib --encodings own yarn
    python -m experiments.perplexity figure4-llama2-7b --help

Stop it at any time: the same command goes on with the next document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.perplexity import PRESETS, Config
from resonance_jax.command import (
    device_line,
    keep_result,
    kept_result,
    main,
    open_run,
    open_run_of_first,
    together,
    use_precision,
)
from resonance_jax.digest import folder_name
from resonance_jax.files import write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import evaluate, rope
    from resonance_jax.evaluate.documents import Selection
    from resonance_jax.interop import Checkpoint

    Results = dict[str, dict[str, dict[int, evaluate.Perplexity]]]
    """By corpus, then by label, then by length."""


def run(config: Config) -> int:
    """Score what is missing, then print the tables; 3 where documents had to be left out."""
    _check(config)
    if config.compile is not None:
        return compile_ahead(config)
    with together():
        return score(config)


def score(config: Config) -> int:
    """Score and print, with the other processes of the mesh if there are any."""
    from jax import process_count

    from resonance_jax.command.checkpoints import named_checkpoints
    from resonance_jax.report.perplexity import table
    from resonance_jax.report.tables import print_table

    if process_count() > 1 and config.parallel != "mesh":
        raise ValueError("several processes score over a mesh that spans them; give --parallel mesh.")
    use_precision(config.precision, config.dtype)
    study = Study(config, named_checkpoints(config.checkpoints))
    folder = open_run_of_first("perplexity", config)
    result = study.result(folder)
    lengths = result["table_lengths"]
    for corpus, part in result["corpora"].items():
        print_table(table(part["rows"], lengths), f"{corpus}: perplexity over tokens, {config.protocol}")
        if part["differences"]:
            print_table(part["differences"], "Paired differences, nats per token")
        if (done := part.get("work", {})).get("computed"):
            share = done["computed"] / done["scored"]
            print(f"tokens computed: {done['computed']:,} for {done['scored']:,} scored ({share:.3f})")
    no_number = result.get("no_number", [])
    for sentence in (*study.remarks, *no_number):
        print(sentence)
    print(f"\n{folder}/perplexity.png  {folder}/perplexity.csv")
    return 3 if study.left_out or no_number else 0


def _check(config: Config) -> None:
    """Raise ValueError before anything is read or made."""
    from resonance_jax.evaluate.perplexity_protocols import Windowing

    for name in ("corpora", "encodings", "lengths"):
        if not getattr(config, name):
            raise ValueError(f"--{name} must be at least one.")
    if config.parallel not in ("none", "pmap", "mesh"):
        raise ValueError(f'unknown --parallel {config.parallel!r}; expected "none", "pmap" or "mesh".')
    if config.min_tokens < 0:
        raise ValueError(f"--min-tokens must be at least 0, got {config.min_tokens}.")
    if other := sorted(set(config.dynamic_lengths) - set(config.lengths)):
        raise ValueError(f"--dynamic-lengths must be some of --lengths; {other[0]:,} is not.")
    for length in config.lengths:
        Windowing(config.protocol, config.stride, None, config.truncate).check(length)


def compile_ahead(config: Config) -> int:
    """Compile the scoring of the longest window for the slice of --compile, over the mesh of --parallel mesh;
    print and keep what came out. 1 when it does not fit."""
    from resonance_jax.parallel.topology import absent_devices, chip_of, without_a_tpu

    chip_of(config.compile)
    without_a_tpu()
    use_precision(config.precision, config.dtype, "tpu")
    from resonance_jax import model, rope
    from resonance_jax.command.checkpoints import open_if_there, split_entry
    from resonance_jax.evaluate.compiled_nll import compile_nll
    from resonance_jax.parallel.mesh import fill, make_mesh
    from resonance_jax.report.compiled import keep_compiled, show_compiled

    if config.shape not in model.PRESETS:
        raise ValueError(f"there is no shape {config.shape!r}; expected one of {', '.join(model.PRESETS)}.")
    checkpoint = open_if_there(split_entry(config.checkpoints[0])[1]) if config.checkpoints else None
    shape = model.PRESETS[config.shape] if checkpoint is None else checkpoint.config
    devices = absent_devices(config.compile)
    sizes = fill(len(devices), **dataclasses.asdict(config.mesh))
    mesh = make_mesh(devices=devices, **sizes)
    length, rows = max(config.lengths), sizes["data"] * sizes["fsdp"]
    # Of an encoding only the shape of its table matters.
    table = rope.frequencies(rope.RopeSpec(head_dim=shape.head_dim), length=length)
    folder = open_run("perplexity", dataclasses.replace(config, compile=None))
    print(
        f"{config.compile}: {len(devices)} x {devices[0].device_kind}, {rows} windows of {length:,}, "
        f"{config.dtype}, mesh " + " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    )
    result = compile_nll(shape.replace(dtype=config.dtype), mesh, rows, length, table)
    about = {"slice": config.compile, "devices": len(devices), "mesh": sizes, "rows": rows, "length": length}
    keep_compiled(folder, result, {**about, "dtype": config.dtype})
    show_compiled(result)
    print(f"{result.verdict}\n{folder}/tpu_compile.json")
    return 0 if result.fits else 1


class Study:
    """The checkpoints and the texts of a config, each text under each checkpoint's own tokenizer.

    Attributes:
        remarks: sentences on what a reader of the figures should know.
        left_out: how many documents had no usable text.
    """

    def __init__(self, config: Config, checkpoints: Mapping[str, Checkpoint]):
        from resonance_jax.command.checkpoints import encodings_of, tokenizer_of

        self.config, self.checkpoints = config, checkpoints
        self.remarks: list[str] = []
        self.left_out = 0
        self.tokenizers = {
            name: tokenizer_of(checkpoint, config.tokenizer, config.bos)
            for name, checkpoint in checkpoints.items()
        }
        reach, asked = max(config.lengths), {"scale": config.scale, "train_length": config.train_length}
        self.encodings = {
            name: encodings_of(c.rope, config.encodings, name, list(checkpoints), reach, **asked)
            for name, c in checkpoints.items()
        }
        read = {
            (corpus, name): self._documents(corpus, name) for corpus in config.corpora for name in checkpoints
        }
        self.documents = {place: selection.documents for place, selection in read.items()}
        self._digests = {f"{corpus}, {name}": chosen.digest() for (corpus, name), chosen in read.items()}

    def _documents(self, corpus: str, name: str) -> Selection:
        """The documents that are scored. A corpus gets one remark, whatever the number of tokenizers."""
        from resonance_jax import data, evaluate
        from resonance_jax.evaluate.perplexity_protocols import Windowing

        c, tokenizer = self.config, self.tokenizers[name]
        how = Windowing(c.protocol, c.stride, tokenizer.bos_id, c.truncate)
        source = data.corpus(corpus, text_field=c.text_field, data_dir=c.data_dir).split(c.split)
        skipped: list[data.LeftOut] = []
        found = evaluate.first_documents(
            source.documents(skipped.append),
            tokenizer,
            c.documents,
            max(c.min_tokens, how.tokens_needed(max(c.lengths))),
            self.checkpoints[name].config.vocab_size,
        )
        if not found.documents:
            raise ValueError(
                f"{corpus}: none of its {found.short} documents has the {found.min_tokens:,} tokens that are "
                f"needed; give longer documents, or lower --lengths or --min-tokens."
            )
        first = name == next(iter(self.checkpoints))
        if first and skipped:
            self.left_out += len(skipped)
            self.remarks.append(f"{corpus}: {len(skipped)} left out; the first: {skipped[0].reason}")
        if first and (sentence := found.warning(c.documents, corpus)):
            print(sentence)
            self.remarks.append(sentence)
        return found

    def identity(self) -> dict:
        """What the result depends on."""
        from resonance_jax.command.checkpoints import checkpoint_identity
        from resonance_jax.model.lowering import stated_precision

        c = self.config
        return {
            "checkpoints": {
                name: checkpoint_identity(checkpoint, self.tokenizers[name])
                for name, checkpoint in self.checkpoints.items()
            },
            "encodings": {
                label: spec.to_dict() for specs in self.encodings.values() for label, spec in specs.items()
            },
            "documents": self._digests,
            "lengths": sorted(set(c.lengths)),
            "dynamic lengths": sorted(set(c.dynamic_lengths or c.lengths)),
            "protocol": [c.protocol, c.stride, c.truncate],
            "dtype": c.dtype,
            **stated_precision(),
        }

    def result(self, folder: Path) -> dict:
        """The figures of perplexity.json, computed where there are none of these inputs."""
        from resonance_jax.parallel.distributed import of_first

        identity = self.identity()
        if kept := of_first(lambda: kept_result(folder / "perplexity.json", identity)):
            return kept
        scores = self._scores(folder)
        return of_first(lambda: write_results(folder, self.config, *scores, identity))

    def _scores(self, folder: Path) -> tuple[Results, dict[str, rope.Specs]]:
        """Every checkpoint under its encodings on every corpus."""
        import jax

        from resonance_jax import evaluate, interop, report
        from resonance_jax.command.checkpoints import scale_note
        from resonance_jax.parallel.mesh import make_mesh

        c = self.config
        mesh = make_mesh(**dataclasses.asdict(c.mesh)) if c.parallel == "mesh" else None
        devices = {"none": 1, "pmap": jax.local_device_count(), "mesh": jax.device_count()}[c.parallel]
        head_dim = next(iter(self.checkpoints.values())).config.head_dim
        print(device_line(c.dtype, max(c.lengths), head_dim, devices=devices))
        results: Results = {corpus: {} for corpus in c.corpora}
        encodings: dict[str, rope.Specs] = {}
        for name, checkpoint in self.checkpoints.items():
            print(f"loading {name} from {checkpoint.path}")
            lm = interop.load_hf(checkpoint.path, dtype=c.dtype, mesh=mesh)
            for label, spec in self.encodings[name].items():
                if note := scale_note(spec, checkpoint.rope, c.scale, max(c.lengths)):
                    print(f"{label}: {note}")
                encodings[label] = spec
                for corpus in c.corpora:
                    store = evaluate.Store(folder / "nll" / folder_name(corpus) / folder_name(label))
                    with report.Progress(f"{label} on {corpus}: documents") as progress:
                        results[corpus][label] = evaluate.sweep(
                            lm,
                            self.documents[corpus, name],
                            spec,
                            c.dynamic_lengths or c.lengths if spec.dynamic else c.lengths,
                            c.protocol,
                            c.stride,
                            self.tokenizers[name].bos_id,
                            c.truncate,
                            pmap=c.parallel == "pmap",
                            progress=progress,
                            store=store,
                        )
        return results, encodings


def split_off_no_number(results: Results, checkpoints: Iterable[str]) -> tuple[Results, list[str]]:
    """The encodings that gave a number everywhere, and a sentence on each that did not.

    Raises ValueError, naming the checkpoints, when a corpus is left with none.
    """
    kept: Results = {}
    sentences = []
    for corpus, by_label in results.items():
        kept[corpus] = {}
        for label, by_length in by_label.items():
            bad = [length for length, result in by_length.items() if not result.finite]
            if bad:
                sentences.append(
                    f"{corpus}: {label} is left out: its NLL is no finite number at length {bad[0]:,}, "
                    "because activations overflow; try --dtype float32, and look at the checkpoint's weights."
                )
            else:
                kept[corpus][label] = by_length
    if not all(kept.values()):
        raise ValueError(f"{', '.join(checkpoints)}: {sentences[0]}")
    return kept, sentences


def write_results(
    folder: Path, config: Config, results: Results, encodings: dict[str, rope.Specs], identity: dict
) -> dict:
    """perplexity.csv and .png, positions.csv, and last perplexity.json, whose presence ends the run."""
    from resonance_jax import evaluate, report, rope

    results, no_number = split_off_no_number(results, config.checkpoints)
    longest = max(config.lengths)
    lengths = report.doubling(min(config.lengths), longest)
    corpora: dict[str, dict] = {}
    rows, positions = [], []
    for corpus, by_label in results.items():
        figures = [row for label, r in by_label.items() for row in report.figures(label, encodings[label], r)]
        gaps = []
        for label, spec in encodings.items():
            plain = label.removeprefix("Resonance ")
            if spec.resonance and {label, plain} <= by_label.keys():
                a, b = by_label[label], by_label[plain]
                gaps += [report.difference(label, a[n], plain, b[n]) for n in lengths if n in a]
        done = evaluate.work(result for by_length in by_label.values() for result in by_length.values())
        corpora[corpus] = {"rows": figures, "differences": gaps, "work": done}
        rows += [{"corpus": corpus, **row} for row in figures]
        for label, by_length in by_label.items():
            positions += [
                {"corpus": corpus, **row} for row in report.positions(label, by_length[max(by_length)])
            ]
    records = {
        label: rope.to_record(rope.frequencies(spec, length=longest), spec)
        for label, spec in encodings.items()
    }
    write_json(folder / "encodings.json", records)
    train_length = next((s.train_length for s in encodings.values() if s.train_length), None)
    report.perplexity_panels(results, folder / "perplexity.png", train_length)
    write_text(folder / "perplexity.csv", report.csv_text(rows))
    write_text(folder / "positions.csv", report.csv_text(positions))
    result = {"table_lengths": lengths, "corpora": corpora, "no_number": no_number}
    keep_result(folder / "perplexity.json", identity, result)
    return result


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
