"""The decoder that fine-tuning starts from: a checkpoint's, the quickstart's, or one trained here first."""

import dataclasses
from pathlib import Path

from configs.finetune import Config
from configs.quickstart import Config as Quickstart
from experiments import quickstart
from experiments.command import default_folder
from resonance_jax.files import read_json


def base(config: Config, folder: Path, local: Path, mesh, tokens, say):
    """The decoder, on the mesh. What is no Hugging Face directory yet becomes one, local/base."""
    from resonance_jax import interop
    from resonance_jax.parallel import distributed

    path = local / "base" if config.checkpoint is None else Path(config.checkpoint)
    if config.checkpoint is None and not distributed.first_says(path.exists()):
        lm = _of_quickstart(config, mesh, say) or _fresh(config, folder, mesh, tokens, say)
        interop.save_hf(lm, path, rope=lm.rope, length=lm.rope.train_length)
    else:
        lm = interop.load_hf(path, mesh=mesh)
    _check_vocabulary(tokens, lm.config, str(path))
    return lm


def _of_quickstart(config: Config, mesh, say):
    """The plain RoPE model of a quickstart; None when none is asked for or the default one is not there."""
    import jax

    from resonance_jax import model, rope
    from resonance_jax.train.checkpoint import newest_step, saved_params

    if config.quickstart is None:
        return None
    folder = Path(config.quickstart)
    if config.quickstart == "default":
        folder = default_folder("quickstart", Quickstart())
    checkpoints, stated = folder / "train" / "checkpoints", folder / "config.json"
    known = {field.name for field in dataclasses.fields(Quickstart)}
    settings = read_json(stated) if stated.exists() else {}
    theirs = Quickstart(**{name: value for name, value in settings.items() if name in known})
    if not stated.exists() or newest_step(checkpoints) != theirs.steps:
        if config.quickstart != "default":
            raise ValueError(f"{folder} holds no quickstart that has finished its training.")
        say(f"base: no finished quickstart in {folder} (make quickstart), so one is trained here")
        return None
    say(f"base: the quickstart's RoPE model, {folder}, trained at {theirs.train_length} positions")
    params = jax.tree.map(lambda x: x[0], saved_params(checkpoints))  # of the two runs, the one of plain RoPE
    shape = quickstart.shape_of(theirs)
    spec = rope.RopeSpec(head_dim=shape.head_dim, train_length=theirs.train_length)
    lm = model.Decoder(shape, mesh=mesh, rope=spec, params=params)
    return lm.replace_params(jax.device_put(params, None if mesh is None else lm.shardings()))


def _fresh(config: Config, folder: Path, mesh, tokens, say):
    """A decoder of the stated shape, trained under plain RoPE at the short length if that is asked for."""
    import jax

    from resonance_jax import data, model, report, rope, train
    from resonance_jax.train.batches import micro_rows

    shape = shape_named(config.shape)
    _check_vocabulary(tokens, shape, config.shape)
    spec = rope.RopeSpec(head_dim=shape.head_dim, train_length=config.train_length)
    lm = model.Decoder(shape, jax.random.key(config.seed), mesh=mesh, rope=spec)
    if not config.pretrain_steps:
        return lm
    if config.train_length is None:
        raise ValueError("pretraining needs --train-length, the positions in its rows.")
    rows = config.pretrain_batch_size
    say(f"base: {config.shape}, trained for {config.pretrain_steps} steps of {rows} x {config.train_length}")
    batches = data.Batches(tokens, config.train_length, rows, config.seed)
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    optimizer = train.OptimizerConfig(config.pretrain_lr, weight_decay=0.1, schedule="cosine", clip=1.0)
    settings = train.TrainConfig(
        config.pretrain_steps,
        optimizer,
        micro=micro_rows(rows, config.train_length, shards),
        save_seconds=config.save_seconds,
    )
    with report.training_progress("pretrain") as progress:
        return train.fit(lm, batches, spec, settings, folder / "pretrain", progress=progress).lm


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
