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
from experiments.command import main, open_run, use_every_core
from resonance_jax.files import read_json, write_json, write_text


def run(config: Config) -> int | None:
    use_every_core()
    if config.plan:
        return show_plan(config)
    from resonance_jax.parallel import distributed

    process = distributed.start()
    with distributed.first_process_first():
        folder = open_run("finetune", identity(config))
    if not distributed.first_says((folder / "finetune.json").exists()):
        _run(config, folder)
    if process == 0:
        from resonance_jax.report.tables import print_table

        print_table([read_json(folder / "finetune.json")["summary"]], "Fine-tuning")
        print(f"\n{folder}/loss.png  {folder}/hf  {folder}/metrics.jsonl")
    return None


def identity(config: Config) -> Config:
    """The config without what may change between the parts of one run."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    return dataclasses.replace(config, **{name: defaults[name] for name in ELSEWHERE})


def _run(config: Config, folder: Path) -> None:
    import jax

    from resonance_jax import data, report, rope, train
    from resonance_jax.parallel import distributed

    mesh, device = mesh_of(config), jax.devices()[0]
    say = print if jax.process_index() == 0 else lambda *_: None
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
            config.cache_dir or folder / "tokens",
            config.rule,
        )
    batches = data.Batches(
        tokens, config.length, config.batch_size, config.seed, config.mode, config.source_chunk
    )
    say(f"text: {tokens.header['corpus']['name']}, {len(tokens):,} tokens, {batches.chunks:,} rows of them")
    lm = base(config, folder, mesh, tokens)
    spec = encoding(config, lm)
    freqs = rope.frequencies(spec, length=config.length)
    lm = with_settings(config, lm)
    say(f"{lm.count_parameters() / 1e6:,.1f} M parameters, {spec.title}, {config.length:,} positions")
    if jax.process_index() == 0:
        write_json(folder / "encodings.json", [rope.to_record(freqs, spec)])
    with report.training_progress("fine-tune", bytes_per_token(tokenizer)) as progress:
        result = train.fit(
            lm,
            batches,
            freqs,
            training(config, config.steps, config.batch_size, mesh),
            folder,
            seed=config.seed,
            lora=adapters(config),
            progress=progress,
            checkpoint_dir=config.checkpoint_dir,
            keep=config.keep,
            profile=config.profile,
            donate=True,
        )
    export(config, folder / "hf", result.lm, spec, tokenizer)
    if jax.process_index() == 0:
        write_results(config, folder, result.history, spec)
    distributed.wait("finished")


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


def base(config: Config, folder: Path, mesh, tokens):
    """The decoder to start from: a checkpoint's, a fresh one, or one trained at the short length first."""
    import jax

    from resonance_jax import data, interop, model, report, rope, train

    if config.checkpoint is not None:
        lm = interop.load_hf(config.checkpoint, mesh=mesh)
        _check_vocabulary(tokens, lm.config, config.checkpoint)
        return lm
    shape = shape_named(config.shape)
    _check_vocabulary(tokens, shape, config.shape)
    saved = folder / "base"
    if saved.exists():
        return interop.load_hf(saved, mesh=mesh)
    spec = rope.RopeSpec(head_dim=shape.head_dim, train_length=config.train_length)
    lm = model.Decoder(shape, jax.random.key(config.seed), mesh=mesh, rope=spec)
    if not config.pretrain_steps:
        return lm
    if config.train_length is None:
        raise ValueError("pretraining needs --train-length, the positions in its rows.")
    rows = config.pretrain_batch_size
    batches = data.Batches(tokens, config.train_length, rows, config.seed)
    plain = dataclasses.replace(
        config, lr=config.pretrain_lr, weight_decay=0.1, schedule="cosine", clip=1.0, micro=0
    )
    settings = dataclasses.replace(training(plain, config.pretrain_steps, rows, mesh), steps_per_call=8)
    freqs = rope.frequencies(spec, length=config.train_length)
    with report.training_progress("pretrain") as progress:
        result = train.fit(lm, batches, freqs, settings, folder / "pretrain", progress=progress)
    interop.save_hf(result.lm, saved, rope=spec, length=config.train_length)
    return result.lm


def shape_named(name: str):
    from resonance_jax import model

    if name not in model.PRESETS:
        known = ", ".join(model.PRESETS)
        raise ValueError(f"there is no shape {name!r}; expected one of {known}, or give a --checkpoint.")
    return model.PRESETS[name]


def _check_vocabulary(tokens, shape, name: str) -> None:
    size = tokens.header["vocab_size"]
    if size is not None and size > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {size} tokens, but {name} embeds {shape.vocab_size}; "
            "give the model's own with --tokenizer."
        )


def encoding(config: Config, lm):
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
        resonance=config.resonance,
        **({"scale": config.scale} if config.method in scaled else {}),
    )


def with_settings(config: Config, lm):
    """The same decoder, computing as the config says."""
    from resonance_jax import model

    shape = lm.config.replace(dtype=config.dtype, remat=config.remat, kernel=config.kernel)
    return model.Decoder(shape, mesh=lm.mesh, rope=lm.rope, params=lm.params)


def training(config: Config, steps: int, rows: int, mesh):
    from resonance_jax import train

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
        micro=min(config.micro or shards, rows),
        steps_per_call=1,
        save_seconds=config.save_seconds,
    )


def adapters(config: Config):
    from resonance_jax import train

    if not config.lora:
        return None
    whole = (config.lora_norms, config.lora_embeddings)
    return train.LoraConfig(config.lora_rank, config.lora_alpha, config.lora_dropout, *whole)


def export(config: Config, path: Path, lm, spec, tokenizer) -> None:
    """The Hugging Face directory, unless a run that was killed afterwards has written it."""
    import jax

    from resonance_jax import interop
    from resonance_jax.parallel import distributed

    if distributed.first_says(path.exists()):
        return
    params = jax.tree.map(lambda x: x.astype(config.dtype), lm.params)
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    longest = max(config.length, int(spec.scale * (spec.train_length or config.length)))
    interop.save_hf(lm.replace_params(params), path, rope=spec, length=longest, extra=ids)


def write_results(config: Config, folder: Path, history, spec) -> None:
    """loss.png, metrics.csv, and last finetune.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report.training import loss_plot, training_summary

    summary = training_summary(history, config.batch_size * config.length)
    loss_plot(history, folder / "loss.png", f"{spec.title}, {config.length:,} positions")
    write_text(folder / "metrics.csv", report.csv_text([r for r in history if "loss" in r]))
    write_json(folder / "finetune.json", {"encoding": spec.title, "summary": summary})


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
