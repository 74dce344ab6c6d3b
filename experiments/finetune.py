"""Fine-tune a LLaMA to a longer context under any RoPE encoding, on one device or many hosts.

    python -m experiments.finetune cpu                              (minutes on two cores)
    python -m experiments.finetune 7b-long-resonance --checkpoint PATH --corpus PATH --plan

Stop it at any time: the same command goes on where it was, on another mesh too. docs/tpu.md has the commands
for a TPU slice; configs/finetune.py every setting.
"""

import dataclasses
import math
from pathlib import Path

from configs.finetune import ELSEWHERE, PRESETS, Config
from experiments.base_model import base, shape_named
from experiments.command import (
    default_folder,
    leave_on_sigterm,
    local_part,
    main,
    open_run,
    use_every_core,
)
from experiments.length_sweep import sweep
from resonance_jax.files import as_path, is_remote, read_json, upload, write_json, write_text


def run(config: Config) -> int | None:
    use_every_core()
    if config.plan:
        return show_plan(config)
    from resonance_jax.parallel import distributed

    process = distributed.start()
    leave_on_sigterm()  # joining the other processes may have put another handler there
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
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    return dataclasses.replace(config, **{name: defaults[name] for name in ELSEWHERE})


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
    import jax

    from resonance_jax import data, rope
    from resonance_jax.parallel import distributed

    if config.compare and jax.process_count() > 1:
        raise ValueError(
            "--compare is for one host; fine-tune each encoding by itself, then compare them with "
            "python -m experiments.perplexity."
        )
    mesh, device, first = mesh_of(config), jax.devices()[0], jax.process_index() == 0
    local = local_part("finetune", identity(config), folder)
    say = print if first else lambda *_: None
    say(
        f"device: {jax.device_count()} x {device.device_kind}, {config.dtype}, "
        f"{jax.process_count()} process(es), jax {jax.__version__}"
    )
    tokenizer = tokenizer_of(config)
    with distributed.first_process_first():
        tokens = data.token_file(
            data.corpus(config.corpus, text_field=config.text_field, data_dir=config.data_dir).split(
                config.split
            ),
            tokenizer,
            config.cache_dir or local / "tokens",
            config.rule,
        )
    batches = data.Batches(
        tokens, config.length, config.batch_size, config.seed, config.mode, config.source_chunk
    )
    say(f"text: {tokens.header['corpus']['name']}, {len(tokens):,} tokens, {batches.chunks:,} rows of them")
    lm = base(config, folder, local, mesh, tokens, say)
    specs = [encoding(config, lm, resonance) for resonance in variants(config)]
    if first:
        records = [rope.to_record(rope.frequencies(spec, length=config.length), spec) for spec in specs]
        write_json(folder / "encodings.json", records)
    trained = with_settings(config, lm)
    folders = zip(specs, parts(config, folder), parts(config, local), strict=True)
    rows = [tune(config, *where, trained, batches, tokenizer, say) for where in folders]
    if first:
        result = {"runs": rows}
        if config.compare:
            tuned = dict(zip(specs, (part / "hf" for part in parts(config, local)), strict=True))
            result |= sweep(config, folder, local, lm, tuned, tokenizer)
        write_json(folder / "finetune.json", result)
    distributed.wait("finished")


def tune(config: Config, spec, folder: Path, local: Path, lm, batches, tokenizer, say) -> dict:
    """Fine-tune lm under one encoding; metrics, loss.png and hf/ in folder. Returns the run's summary."""
    import jax

    from resonance_jax import report, rope, train
    from resonance_jax.report.training import loss_plot, training_summary

    say(
        f"fine-tuning: {lm.count_parameters() / 1e6:,.1f} M parameters, {spec.title}, "
        f"{config.batch_size} rows of {config.length:,} positions a step"
    )
    own = None if config.checkpoint_dir is None else as_path(config.checkpoint_dir)
    with report.training_progress(spec.title, bytes_per_token(tokenizer)) as progress:
        result = train.fit(
            lm,
            batches,
            rope.frequencies(spec, length=config.length),
            training(config, config.steps, config.batch_size, lm.mesh),
            folder,
            seed=config.seed,
            lora=adapters(config),
            progress=progress,
            checkpoint_dir=own / folder.name if own is not None and config.compare else own,
            keep=config.keep,
            profile=config.profile,
            donate=not config.compare,
        )
    export(config, folder / "hf", local / "hf", result.lm, spec, tokenizer)
    summary = training_summary(result.history, config.batch_size * config.length)
    if jax.process_index() == 0:
        loss_plot(result.history, folder / "loss.png", f"{spec.title}, {config.length:,} positions")
        write_text(folder / "metrics.csv", report.csv_text([r for r in result.history if "loss" in r]))
    return {"encoding": spec.title, **summary}


def mesh_of(config: Config):
    """The mesh over all devices, None on a single one."""
    import jax

    from resonance_jax.parallel.mesh import make_mesh

    sizes = mesh_sizes(config, jax.device_count())
    return make_mesh(**sizes) if max(sizes.values()) > 1 else None


def mesh_sizes(config: Config, devices: int) -> dict[str, int]:
    """The mesh's sizes. Where -1 leaves more devices than there are rows, the rest cut time."""
    from resonance_jax.parallel.mesh import fill

    sizes = fill(devices, config.data, config.fsdp, config.tensor, config.sequence)
    shards = sizes["data"] * sizes["fsdp"]
    rows = math.gcd(shards, config.batch_size)
    for axis in ("data", "fsdp"):
        others = shards // sizes[axis]
        if getattr(config, axis) == -1 and config.sequence == 1 and rows % others == 0:
            sizes |= {axis: rows // others, "sequence": shards // rows}
    return sizes


def tokenizer_of(config: Config):
    from resonance_jax import data

    name = config.tokenizer or config.checkpoint or "bytes"
    return None if name == "none" else data.tokenizer(name)


def bytes_per_token(tokenizer) -> float | None:
    return 1.0 if tokenizer is not None and tokenizer.name == "bytes" else None


def encoding(config: Config, lm, resonance: bool):
    """The RopeSpec to train under: the base's, its method and scale replaced."""
    from resonance_jax import rope

    own = lm.rope
    scaled = {"linear", "ntk", "ntk_by_parts", "yarn", "llama3", "proportional"}
    return rope.RopeSpec(
        method=config.method,
        head_dim=own.head_dim,
        base=own.base,
        partial_rotary_factor=own.partial_rotary_factor,
        train_length=config.train_length or own.train_length,
        resonance=resonance,
        **({"scale": config.scale} if config.method in scaled else {}),
    )


def with_settings(config: Config, lm):
    """The same decoder, computing as the config says."""
    shape = lm.config.replace(dtype=config.dtype, remat=config.remat, kernel=config.kernel)
    return lm.replace(config=shape)


def training(config: Config, steps: int, rows: int, mesh):
    from resonance_jax import train
    from resonance_jax.train.batches import micro_rows

    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return train.TrainConfig(
        steps,
        train.OptimizerConfig(
            lr=config.lr,
            beta1=config.beta1,
            beta2=config.beta2,
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            warmup=config.warmup,
            clip=config.clip,
        ),
        micro=config.micro or micro_rows(rows, config.length, shards),
        steps_per_call=1,
        save_seconds=config.save_seconds,
    )


def adapters(config: Config):
    from resonance_jax import train

    if not config.lora:
        return None
    whole = (config.lora_norms, config.lora_embeddings)
    return train.LoraConfig(config.lora_rank, config.lora_alpha, config.lora_dropout, *whole)


def export(config: Config, path: Path, local: Path, lm, spec, tokenizer) -> None:
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
        longest = max(config.length, int(spec.scale * (spec.train_length or config.length)))
        interop.save_hf(lm.replace_params(params), local, rope=spec, length=longest, extra=ids)
    if is_remote(path) and jax.process_index() == 0 and not (path / "config.json").exists():
        upload(local, path)


def show(config: Config, folder: Path) -> None:
    from resonance_jax.report.tables import print_table

    result = read_json(folder / "finetune.json")
    print_table(result["runs"], "Fine-tuning")
    if config.compare:
        print_table(result["table"], "Perplexity of held-out text by length")
        print_table(result["differences"], f"Differences at {config.length:,}, nats a token")
        print(f"{folder}/sweep.png  {folder}/report.md")
    for part in parts(config, folder):
        print(f"{part}/loss.png  {part}/hf  {part}/metrics.jsonl")


def show_plan(config: Config) -> int:
    """Print the plan; 1 when it does not fit."""
    import jax

    from resonance_jax.interop.hf_config import from_hf_config, read_config
    from resonance_jax.report.tables import print_table
    from resonance_jax.train import plan

    if config.checkpoint is not None and Path(config.checkpoint).is_dir():
        shape, _ = from_hf_config(read_config(Path(config.checkpoint)))
    else:
        shape = shape_named(config.shape)
    shape = shape.replace(dtype=config.dtype, remat=config.remat, kernel=config.kernel)
    chip = plan.chip(config.chip or jax.devices()[0].device_kind)
    sizes = mesh_sizes(config, config.devices or jax.device_count())
    made = plan.plan(shape, sizes, config.batch_size, config.length, config.micro, adapters(config), chip)
    print(made.title)
    print_table(made.rows())
    print(made.verdict)
    return 0 if made.fits is not False else 1


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
