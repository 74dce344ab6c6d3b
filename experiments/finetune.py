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

from configs.finetune import ELSEWHERE, PRESETS, Config
from configs.quickstart import Config as Quickstart
from resonance_jax.command import (
    default_folder,
    leave_on_signals,
    local_part,
    main,
    open_run,
    options_of,
    remember,
    stated_config,
    use_every_core,
    with_options,
)
from resonance_jax.files import as_path, is_remote, read_json, upload, write_json, write_text

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from resonance_jax import data, rope, train
    from resonance_jax.model import Decoder, DecoderConfig

    Say = Callable[[str], None]

UNTRAINED = ("rope", "dynamic-ntk")
"""Encodings that --compare scores the base under, beside those that it is fine-tuned with."""


def run(config: Config) -> int | None:
    """Fine-tune, then print what came of it; or only plan it."""
    use_every_core()
    if config.plan:
        return show_plan(config)
    from resonance_jax.parallel import distributed

    process = distributed.start()
    leave_on_signals()  # joining the other processes may have put another handler there
    with distributed.first_process_first():
        if process == 0:
            check_resume(config)
        folder = open_run("finetune", identity(config))
    if not distributed.first_says((folder / "finetune.json").exists()):
        _run(config, folder)
    if process == 0:
        show(config, folder)
    return None


def identity(config: Config) -> Config:
    """The config without what may change between the parts of one run."""
    defaults = options_of(Config())
    return with_options(config, **{name: defaults[name] for name in ELSEWHERE})


def check_resume(config: Config) -> None:
    """Refuse, before anything is written, what --resume does not allow."""
    from resonance_jax.train import checkpoint

    folder = as_path(config.run_dir or default_folder("finetune", identity(config)))
    if config.checkpoint_dir is None:
        tuned = [part / "checkpoints" for part in parts(config, folder)]
    else:
        tuned = parts(config, as_path(config.checkpoint_dir))
    checkpoint.check_resume(config.resume, [*tuned, folder / "pretrain" / "checkpoints"])


def variants(config: Config) -> list[bool]:
    """Which of the method without and with Resonance are trained."""
    return [False, True] if config.compare else [config.resonance]


def parts(config: Config, folder: Path) -> list[Path]:
    """Where each variant's run lies: in the folder itself when there is one."""
    if not config.compare:
        return [folder]
    return [folder / f"{'resonance-' if resonance else ''}{config.method}" for resonance in variants(config)]


def _run(config: Config, folder: Path) -> None:
    """Read the text, find the base, fine-tune it, compare."""
    import jax

    from resonance_jax import data, rope
    from resonance_jax.parallel import distributed
    from resonance_jax.parallel.mesh_for_rows import training_mesh

    if config.compare and jax.process_count() > 1:
        raise ValueError(
            "--compare is for one host; fine-tune each encoding by itself, then compare them with "
            "python -m experiments.perplexity."
        )
    mesh = training_mesh(config.mesh, config.batch_size)
    device, first = jax.devices()[0], jax.process_index() == 0
    local = local_part("finetune", identity(config), folder)
    say = print if first else lambda *_: None
    say(
        f"device: {jax.device_count()} x {device.device_kind}, {config.dtype}, "
        f"{jax.process_count()} process(es), jax {jax.__version__}"
    )
    tokenizer, text = tokenizer_of(config), config.text
    with distributed.first_process_first():
        tokens = data.token_file(
            corpus(config).split(text.split), tokenizer, text.cache_dir or local / "tokens", text.rule
        )
    batches = data.Batches(
        tokens, config.length, config.batch_size, config.seed, text.mode, text.source_chunk
    )
    say(f"text: {tokens.header['corpus']['name']}, {len(tokens):,} tokens, {batches.chunks:,} rows of them")
    lm = base(config, folder, local, mesh, tokens, say)
    specs = [encoding(config, lm.rope, resonance) for resonance in variants(config)]
    if first:
        records = [rope.to_record(rope.frequencies(spec, length=config.length), spec) for spec in specs]
        write_json(folder / "encodings.json", records)
    shape = lm.config.replace(dtype=config.dtype, remat=config.remat, kernel=config.kernel)
    trained = lm.replace(config=shape)
    folders = zip(specs, parts(config, folder), parts(config, local), strict=True)
    rows = [tune(config, *where, trained, batches, tokenizer, say) for where in folders]
    if first:
        result = {"runs": rows}
        if config.compare:
            tuned = dict(zip(specs, (part / "hf" for part in parts(config, local)), strict=True))
            result |= compare(config, folder, local, lm, tuned, tokenizer)
        write_json(folder / "finetune.json", result)
    distributed.wait("finished")


def corpus(config: Config) -> data.Corpus:
    """The text, all of its splits."""
    from resonance_jax import data

    return data.corpus(config.text.corpus, text_field=config.text.text_field, data_dir=config.text.data_dir)


def base(
    config: Config, folder: Path, local: Path, mesh: Mesh | None, tokens: data.TokenFile, say: Say
) -> Decoder:
    """The decoder to start from, on the mesh: the checkpoint's, the quickstart's, or one trained here first.

    One that is no Hugging Face directory yet becomes one, local/base.
    """
    from resonance_jax import interop

    if config.checkpoint is not None:
        path, lm = config.checkpoint, interop.load_hf(config.checkpoint, mesh=mesh)
    else:
        path = local / "base"
        make = lambda: of_quickstart(config, mesh, say) or fresh(config, folder, mesh, tokens, say)
        lm = interop.load_or_make(path, make, mesh)
    interop.check_vocabulary(tokens.header["vocab_size"], lm.config.vocab_size, str(path))
    return lm


def of_quickstart(config: Config, mesh: Mesh | None, say: Say) -> Decoder | None:
    """The plain RoPE model of a quickstart; None when none is asked for or the default one is not there."""
    from resonance_jax import rope, train
    from resonance_jax.train.checkpoint import newest_step

    if config.quickstart is None:
        return None
    default = default_folder("quickstart", Quickstart())
    folder = default if config.quickstart == "default" else Path(config.quickstart)
    theirs, checkpoints = stated_config(folder, Quickstart), folder / "train" / "checkpoints"
    if theirs is None or newest_step(checkpoints) != theirs.steps:
        if config.quickstart != "default":
            raise ValueError(f"{folder} holds no quickstart that has finished its training.")
        say(f"base: no finished quickstart in {folder} (make quickstart), so one is trained here")
        return None
    say(f"base: the quickstart's RoPE model, {folder}, trained at {theirs.train_length} positions")
    spec = rope.RopeSpec(head_dim=theirs.head_dim, train_length=theirs.train_length)
    return train.saved_run(checkpoints, 0, theirs.shape(), spec, mesh)  # of its two runs, the one of RoPE


def fresh(config: Config, folder: Path, mesh: Mesh | None, tokens: data.TokenFile, say: Say) -> Decoder:
    """A decoder of the stated shape, trained under plain RoPE at the short length if that is asked for."""
    import jax

    from resonance_jax import data, interop, model, report, rope, train

    shape, settings = shape_named(config.shape), config.pretraining
    interop.check_vocabulary(tokens.header["vocab_size"], shape.vocab_size, config.shape)
    spec = rope.RopeSpec(head_dim=shape.head_dim, train_length=config.train_length)
    lm = model.Decoder(shape, jax.random.key(config.seed), mesh=mesh, rope=spec)
    if not settings.steps:
        return lm
    if config.train_length is None:
        raise ValueError("pretraining needs --train-length, the positions in its rows.")
    rows = f"{settings.batch_size} x {config.train_length}"
    say(f"base: {config.shape}, trained for {settings.steps} steps of {rows}")
    batches = data.Batches(tokens, config.train_length, settings.batch_size, config.seed)
    with report.training_progress("pretrain") as progress:
        return train.pretrain(lm, batches, settings, folder / "pretrain", config.save_seconds, progress)


def shape_named(name: str) -> DecoderConfig:
    """A shape of model.PRESETS. Raises ValueError when there is none of that name."""
    from resonance_jax import model

    if name not in model.PRESETS:
        known = ", ".join(model.PRESETS)
        raise ValueError(f"there is no shape {name!r}; expected one of {known}, or give a --checkpoint.")
    return model.PRESETS[name]


def tune(
    config: Config,
    spec: rope.RopeSpec,
    folder: Path,
    local: Path,
    lm: Decoder,
    batches: data.Batches,
    tokenizer: data.Tokenizer | None,
    say: Say,
) -> dict[str, str | float]:
    """Fine-tune lm under one encoding; metrics, loss.png and hf/ in folder. Returns the run's summary."""
    import jax

    from resonance_jax import report, train
    from resonance_jax.report.training import loss_plot, training_summary

    say(
        f"fine-tuning: {lm.count_parameters() / 1e6:,.1f} M parameters, {spec.title}, "
        f"{config.batch_size} rows of {config.length:,} positions per step"
    )
    own = None if config.checkpoint_dir is None else as_path(config.checkpoint_dir)
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
            checkpoint_dir=own / folder.name if own is not None and config.compare else own,
            keep=config.keep,
            profile=config.profile,
            donate=not config.compare,
        )
    export(config, folder / "hf", local / "hf", result.lm, tokenizer)
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
        steps_per_call=1,
        save_seconds=config.save_seconds,
    )


def tokenizer_of(config: Config) -> data.Tokenizer | None:
    """The tokenizer, None for a corpus that is tokenized."""
    from resonance_jax import data

    name = config.text.tokenizer or config.checkpoint or "bytes"
    return None if name == "none" else data.tokenizer(name)


def encoding(config: Config, own: rope.RopeSpec, resonance: bool) -> rope.RopeSpec:
    """The encoding to train under: the base's own, restated under the method and scale that are asked for."""
    from resonance_jax import rope

    name = f"{'resonance-' if resonance else ''}{config.method}"
    return rope.restate(own, name, scale=config.scale, train_length=config.train_length)


def export(config: Config, path: Path, local: Path, lm: Decoder, tokenizer: data.Tokenizer | None) -> None:
    """The Hugging Face directory, unless a run that was killed afterwards has written it.

    To an object store it is uploaded from a local one, config.json last.
    """
    import jax

    from resonance_jax import interop
    from resonance_jax.parallel import distributed

    if not distributed.first_says(local.exists()):
        params = jax.tree.map(lambda x: x.astype(config.dtype), lm.params)
        ids = (
            {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        )
        interop.save_hf(lm.replace_params(params), local, extra=ids)
    if is_remote(path) and jax.process_index() == 0 and not (path / "config.json").exists():
        upload(local, path)


def compare(
    config: Config,
    folder: Path,
    local: Path,
    lm: Decoder,
    tuned: Mapping[rope.RopeSpec, Path],
    tokenizer: data.Tokenizer,
) -> dict:
    """Perplexity of held-out text by length: the base under several encodings, and what became of it.

    tuned: the Hugging Face directory that was fine-tuned under each encoding. Returns the content of
    sweep.json, and leaves that and the files of report.finetuning_gain in folder.
    """
    from resonance_jax import evaluate, interop, report, rope
    from resonance_jax.evaluate import Subject
    from resonance_jax.report.finetuning_gain import write_gain
    from resonance_jax.report.labels import FINETUNED

    heldout = corpus(config).split("heldout")
    remember(folder / "corpus.json", {"heldout": heldout.describe()})
    # A piece and its BOS fill the longest window.
    pieces, owners = evaluate.cut_pieces(
        heldout, tokenizer, config.length - 1, config.pieces_per_document, config.documents
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


def show(config: Config, folder: Path) -> None:
    """Print what came of the run."""
    from resonance_jax.report.tables import print_table

    result = read_json(folder / "finetune.json")
    print_table(result["runs"], "Fine-tuning")
    if config.compare:
        print_table(result["table"], "Perplexity of held-out text by length")
        print_table(result["differences"], f"Differences at {config.length:,}, nats per token")
        print(f"{folder}/sweep.png  {folder}/report.md")
    for part in parts(config, folder):
        print(f"{part}/loss.png  {part}/hf  {part}/metrics.jsonl")


def show_plan(config: Config) -> int:
    """Print the plan; 1 when it does not fit."""
    import jax

    from resonance_jax.interop.hf_config import from_hf_config, read_config
    from resonance_jax.parallel.mesh_for_rows import sizes_for_rows
    from resonance_jax.report.tables import print_table
    from resonance_jax.train import plan

    if config.checkpoint is not None and Path(config.checkpoint).is_dir():
        shape, _ = from_hf_config(read_config(Path(config.checkpoint)))
    else:
        shape = shape_named(config.shape)
    shape = shape.replace(dtype=config.dtype, remat=config.remat, kernel=config.kernel)
    chip = plan.chip(config.chip or jax.devices()[0].device_kind)
    sizes = sizes_for_rows(config.mesh, config.devices or jax.device_count(), config.batch_size)
    lora = config.adapters if config.lora else None
    made = plan.plan(shape, sizes, config.batch_size, config.length, config.micro, lora, chip)
    print(made.title)
    print_table(made.rows())
    print(made.verdict)
    return 0 if made.fits is not False else 1


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
