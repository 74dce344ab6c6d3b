"""Fine-tune a LLaMA to a longer context under any RoPE encoding, on one device or many hosts.

    python -m experiments.finetune cpu                              (minutes on two cores)
    python -m experiments.finetune 7b-long-resonance --checkpoint PATH --corpus PATH --plan

Stop it at any time: the same command goes on where it was, on another mesh too. docs/tpu.md has the commands
for a TPU slice; configs/finetune.py every setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.finetune import Config
from experiments.finetune.ahead import compile_ahead, search_plan, show_plan
from experiments.finetune.export import content, export
from experiments.finetune.inputs import Inputs, gather, identity, variants
from experiments.finetune.seeds import run_seeds
from resonance_jax.command import (
    default_folder,
    device_line,
    keep_result,
    kept_result,
    local_part,
    open_run_of_first,
    remember,
    together,
    use_every_core,
    use_precision,
)
from resonance_jax.files import is_remote, reachable, write_json, write_text

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from resonance_jax import data, rope, train
    from resonance_jax.model import Decoder

    Say = Callable[[str], None]

UNTRAINED = ("rope", "dynamic-ntk")
"""Encodings that --compare scores the base under, beside those that it is fine-tuned with."""


def run(config: Config) -> int:
    """Fine-tune, then print what came of it, or only plan or compile it; 3 where documents had to be left
    out."""
    use_every_core()
    if config.ahead.compile is not None:
        return compile_ahead(config, training)
    if config.ahead.plan:
        return search_plan(config, training) if config.ahead.plan == "auto" else show_plan(config)
    if config.comparison.seeds:
        return run_seeds(config, run)
    with together() as process:
        return fine_tune(config, process)


def fine_tune(config: Config, process: int) -> int:
    """Fine-tune and print what came of it; process: the number of this one."""
    from resonance_jax import data
    from resonance_jax.parallel import distributed
    from resonance_jax.parallel.mesh_for_rows import training_mesh
    from resonance_jax.train.batches import check_rows

    use_precision(config.precision, config.dtype)
    inputs = gather(config)
    mesh = training_mesh(config.mesh, config.batch_size)
    check_rows(config.batch_size, training(config, mesh).micro, mesh)
    distributed.of_first(lambda: check_resume(config))
    folder = open_run_of_first("finetune", identity(config))
    say = print if process == 0 else lambda *_: None
    local = local_part("finetune", identity(config), folder)
    with distributed.first_process_first():
        tokens = data.token_file(
            inputs.text, inputs.tokenizer, config.text.cache_dir or local / "tokens", config.text.rule
        )
    tokens.check_ids(inputs.shape.vocab_size, config.checkpoint or config.shape)
    result = Study(inputs, folder, local, tokens, say).result(mesh)
    if process == 0:
        show(config, folder, result)
    return 3 if tokens.header["left_out"] else 0


def check_resume(config: Config) -> None:
    """Refuse, before anything is written, what --resume does not allow."""
    from resonance_jax.train import checkpoint

    folder = reachable(config.run_dir or default_folder("finetune", identity(config)))
    if config.keeping.checkpoint_dir is None:
        tuned = [part / "checkpoints" for part in parts(config, folder)]
    else:
        tuned = parts(config, reachable(config.keeping.checkpoint_dir))
    checkpoint.check_resume(config.keeping.resume, [*tuned, folder / "pretrain" / "checkpoints"])


def parts(config: Config, folder: Path) -> list[Path]:
    """Where each variant's run lies: in the folder itself when there is one."""
    if not config.comparison.compare:
        return [folder]
    return [folder / f"{'resonance-' if resonance else ''}{config.method}" for resonance in variants(config)]


class Study:
    """A run folder and what belongs into it.

    Args:
        inputs: what the config names.
        folder: of the run.
        local: the same on this machine's disk.
        tokens: of the text.
        say: prints a sentence, on the first process only.
    """

    def __init__(self, inputs: Inputs, folder: Path, local: Path, tokens: data.TokenFile, say: Say):
        from experiments.finetune.base import Base

        self.inputs, self.config, self.tokens, self.say = inputs, inputs.config, tokens, say
        self.folder, self.local = folder, local
        self.base = Base(inputs, folder, local, tokens)
        self.identity = inputs.identity(tokens, self.base.identity)
        self.made_by = inputs.made_by(tokens, self.base.identity)

    def result(self, mesh: Mesh | None) -> dict:
        """The content of finetune.json: kept, if these inputs made it and its exports are whole."""
        from resonance_jax.parallel import distributed

        kept = kept_result(self.folder / "finetune.json", self.identity)
        if distributed.first_says(kept is not None and self._exports_are_whole(kept)):
            return kept or {}
        return self._run(mesh)

    def _exports(self) -> list[str | None]:
        """Digests of the Hugging Face directories."""
        return [content(part / "hf") for part in parts(self.config, self.local)]

    def _exports_are_whole(self, kept: Mapping[str, object]) -> bool:
        """Whether the directories are those that the run wrote; a sentence is printed where they are not.
        The local twins of directories in an object store may be gone."""
        found = self._exports()
        if is_remote(self.folder) and found == [None] * len(found):
            return True
        if found != kept["exports"]:
            self.say(f"hf/ in {self.folder} is not what the run wrote; it is made anew.")
        return found == kept["exports"]

    def _run(self, mesh: Mesh | None) -> dict:
        """Find the base, fine-tune it, compare."""
        import jax

        from resonance_jax import data, rope
        from resonance_jax.parallel import distributed

        config, inputs, tokens, say = self.config, self.inputs, self.tokens, self.say
        first, H = jax.process_index() == 0, inputs.shape.head_dim
        computing = device_line(config.dtype, config.length, H, config.kernel, jax.device_count())
        say(f"{computing}, {jax.process_count()} process(es)")
        text, header = config.text, tokens.header
        batches = data.Batches(
            tokens, config.length, config.batch_size, config.seed, text.mode, text.source_chunk
        )
        say(f"text: {header['corpus']['name']}, {len(tokens):,} tokens, {batches.chunks:,} rows of them")
        if header["left_out"]:
            say(f"text: {header['left_out']} documents left out; the first: {header['reasons'][0]}")
        lm = self.base.load(mesh, say)
        specs = inputs.specs
        if first:
            records = [rope.to_record(rope.frequencies(spec, length=config.length), spec) for spec in specs]
            write_json(self.folder / "encodings.json", records)
        trained = lm.replace(config=inputs.shape)
        folders = zip(specs, parts(config, self.folder), parts(config, self.local), strict=True)
        rows = [self._tune(*where, trained, batches) for where in folders]
        result = {"runs": rows, "exports": self._exports() if first else []}
        if first:
            if config.comparison.compare:
                tuned = dict(zip(specs, (part / "hf" for part in parts(config, self.local)), strict=True))
                result |= compare(inputs, self.folder, self.local, lm, tuned)
            keep_result(self.folder / "finetune.json", self.identity, result)
        distributed.wait("finished")
        return result

    def _tune(
        self,
        spec: rope.RopeSpec,
        folder: Path,
        local: Path,
        lm: Decoder,
        batches: data.Batches,
    ) -> dict[str, str | float]:
        """Fine-tune lm under one encoding; metrics, loss.png and hf/ in folder. Returns the run's summary."""
        import jax

        from resonance_jax import report, train
        from resonance_jax.report.training import loss_plot, training_summary

        config, tokenizer = self.config, self.inputs.tokenizer
        self.say(
            f"fine-tuning: {lm.count_parameters() / 1e6:,.1f} M parameters, {spec.title}, "
            f"{config.batch_size} rows of {config.length:,} positions per step"
        )
        own = None if config.keeping.checkpoint_dir is None else reachable(config.keeping.checkpoint_dir)
        bytes_per_token = 1.0 if tokenizer is not None and tokenizer.name == "bytes" else None
        with report.training_progress(spec.title, bytes_per_token) as progress:
            result = train.fit(
                lm,
                batches,
                spec,
                training(config, lm.mesh),
                folder,
                seed=config.seed,
                lora=config.adapters if config.lora else None,
                progress=progress,
                checkpoint_dir=own / folder.name if own is not None and config.comparison.compare else own,
                keep=config.keeping.keep,
                profile=config.keeping.profile,
                meta=self.made_by,
                donate=not config.comparison.compare,
            )
        export(self.inputs, folder / "hf", local / "hf", result.lm, self.base.path)
        summary = training_summary(result.history, config.batch_size * config.length)
        if jax.process_index() == 0:
            loss_plot(result.history, folder / "loss.png", f"{spec.title}, {config.length:,} positions")
            write_text(folder / "metrics.csv", report.csv_text([r for r in result.history if "loss" in r]))
        return {"encoding": spec.title, **summary}


def training(config: Config, mesh: Mesh | None) -> train.TrainConfig:
    """How long and how the fine-tuning trains."""
    from resonance_jax import train
    from resonance_jax.train.batches import micro_rows

    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return train.TrainConfig(
        config.steps,
        config.optimizer,
        micro=config.micro or micro_rows(config.batch_size, config.length, shards),
        steps_per_call=None,
        save_seconds=config.keeping.save_seconds,
    )


def compare(
    inputs: Inputs, folder: Path, local: Path, lm: Decoder, tuned: Mapping[rope.RopeSpec, Path]
) -> dict:
    """Compare the perplexity of held-out text by length: the base under several encodings, and fine-tuned.

    Writes the files of report.finetuning_gain, and returns the content of sweep.json.

    Args:
        inputs: what the config names.
        folder, local: of the run, and the same on this machine's disk.
        lm: the base.
        tuned: the Hugging Face directory that was fine-tuned under each encoding.
    """
    from resonance_jax import evaluate, interop, report, rope
    from resonance_jax.evaluate import Subject
    from resonance_jax.report.finetuning_gain import write_gain
    from resonance_jax.report.labels import FINETUNED

    config, tokenizer, heldout = inputs.config, inputs.tokenizer, inputs.heldout
    remember(folder / "corpus.json", {"heldout": heldout.describe()})
    # A piece and its BOS fill the longest window.
    pieces, owners = evaluate.cut_pieces(
        heldout,
        tokenizer,
        config.length - 1,
        config.comparison.pieces_per_document,
        config.comparison.documents,
        lm.config.vocab_size,
    )
    L = next(iter(tuned)).train_length
    plain = [rope.restate(lm.rope, name, train_length=L) for name in UNTRAINED]
    before = [Subject(spec.title, spec, lm) for spec in (*plain, *tuned)]
    load = lambda path: interop.load_hf(path, mesh=lm.mesh)
    after = [Subject(spec.title + FINETUNED, spec, load(path)) for spec, path in tuned.items()]
    lengths = range(L, config.length + 1, L)
    with report.Progress("evaluate", {"encoding": str}) as progress:
        results = evaluate.sweep_each(
            [*before, *after], pieces, owners, lengths, tokenizer.bos_id, local / "nll", progress
        )
    title = f"Trained at {L}, fine-tuned for {config.steps} steps at {config.length} (held-out text)"
    return write_gain(folder, before, after, results, title, heldout.describe())


def show(config: Config, folder: Path, result: Mapping) -> None:
    """Print what came of the run. result: the content of finetune.json."""
    from resonance_jax.report.tables import print_table

    print_table(result["runs"], "Fine-tuning")
    if config.comparison.compare:
        print_table(result["table"], "Perplexity of held-out text by length")
        print_table(result["differences"], f"Differences at {config.length:,}, nats per token")
        print(f"{folder}/sweep.png  {folder}/report.md")
    for part in parts(config, folder):
        print(f"{part}/loss.png  {part}/hf  {part}/metrics.jsonl")
