"""Passkey retrieval: how far, and how deep, an encoding lets a model find a number hidden in text.

    python -m experiments.passkey cpu
    python -m experiments.passkey checkpoint --checkpoints PATH --encodings own yarn resonance-yarn

Stop it at any time: the same command goes on with the next cell. configs/passkey.py has every setting.
"""

from pathlib import Path

from configs.passkey import PRESETS, Config
from experiments.command import main, open_run, use_every_core
from experiments.perplexity import checkpoint_paths, encodings_of
from resonance_jax.files import read_json, write_json, write_text

FINETUNED = ", fine-tuned"
FOUND = ("encoding", "model", "length", "depth", "right", "trials")


def run(config: Config) -> None:
    _check(config)
    folder = open_run("passkey", config)
    if not (folder / "passkey.json").exists():
        _run(config, folder)
    from resonance_jax.report.tables import print_table

    result = read_json(folder / "passkey.json")
    print_table(result["table"], heading(config))
    print(f"{folder}/passkey.png  {folder}/passkey.csv")


def heading(config: Config) -> str:
    many = "; lowest and highest model in parentheses" if len(config.seeds) > 1 else ""
    return f"Keys found (%), template {config.template}, by prompt tokens, all depths{many}"


def _check(config: Config) -> None:
    from resonance_jax import data
    from resonance_jax.evaluate import passkey

    passkey.template(config.template)
    for name in ("encodings", "lengths", "depths"):
        if not getattr(config, name):
            raise ValueError(f"--{name} must be at least one.")
    if config.checkpoints:
        checkpoint_paths(config)
    elif not config.seeds:
        raise ValueError("give --checkpoints PATH, or take the preset cpu, which trains small models.")
    elif "own" in config.encodings or config.train_length != config.stages[-1]:
        raise ValueError(
            "models trained here have no encoding of their own, and their L is the last of --stages: give "
            f"--encodings by name and --train-length {config.stages[-1]}."
        )
    elif not len(config.stages) == len(config.stage_steps) == len(config.stage_rows):
        raise ValueError("--stages, --stage-steps and --stage-rows must be as many.")
    else:
        tokenizer = data.tokenizer(config.tokenizer or "bytes")
        for length in (*config.lengths, *config.stages):
            passkey.garbage_characters(
                passkey.template(config.template), length, lambda text: len(data.prompt_ids(tokenizer, text))
            )


def _run(config: Config, folder: Path) -> None:
    use_every_core()
    import time

    import jax

    from resonance_jax import data, report, rope
    from resonance_jax.evaluate import passkey
    from resonance_jax.evaluate.journal import Journal

    began = time.monotonic()
    device = jax.devices()[0]
    print(f"device: {jax.local_device_count()} x {device.device_kind}, jax {jax.__version__}")
    own = config.checkpoints[0].rpartition("=")[2] if config.checkpoints else "bytes"
    tokenizer = data.tokenizer(config.tokenizer or own)
    wording = passkey.template(config.template)
    models = trained(config, folder, tokenizer, wording) if not config.checkpoints else loaded(config)
    records = {}
    for label, spec, *_ in models:
        records[label] = rope.to_record(rope.frequencies(spec, length=max(config.lengths)), spec)
    write_json(folder / "encodings.json", records)
    journal = Journal(folder / "cells.jsonl")
    place = lambda cell: (cell["encoding"], cell["model"], cell["length"], cell["depth"])
    known = {place(cell) for cell in journal.records}
    wanted = [(model, n, d) for model in models for n in config.lengths for d in config.depths]
    with report.Progress("cells", {"encoding": str}) as progress:
        for done, ((label, spec, name, lm), length, depth) in enumerate(wanted):
            progress(done, len(wanted), encoding=label)
            if (label, name, length, depth) in known:
                continue
            options = {"seed": config.seed, "batch_size": config.batch_size}
            cell = passkey.cell(lm, tokenizer, spec, wording, length, depth, config.trials, **options)
            journal.append({"encoding": label, "model": name, **cell})
        progress(len(wanted), len(wanted))
    write_results(folder, config, journal.records, time.monotonic() - began)


def loaded(config: Config) -> list[tuple]:
    """(label, spec, model name, decoder) of every checkpoint and encoding."""
    from resonance_jax import interop

    models = []
    named = checkpoint_paths(config)
    for name, path in named.items():
        lm = interop.load_hf(path, dtype=config.dtype)
        specs = encodings_of(config, name, lm, len(named))
        models += [(label, spec, name, lm) for label, spec in specs.items()]
    return models


def trained(config: Config, folder: Path, tokenizer, wording) -> list[tuple]:
    """The same of models trained here: one a seed under RoPE, one under Resonance RoPE (as far as the
    encodings ask for them), and from each a short fine-tuning under YaRN; all at L or shorter."""
    import jax
    import numpy as np

    from resonance_jax import model, report, rope, train
    from resonance_jax.evaluate import passkey

    L = config.stages[-1]
    settings = {"head_dim": config.head_dim, "train_length": L, "scale": config.scale}
    specs = [rope.named(name, **settings) for name in config.encodings]
    heads = config.d_model // config.head_dim
    shape = model.PRESETS["tiny"].replace(
        vocab_size=tokenizer.vocab_size,
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=config.head_dim,
        d_ff=2 * config.d_model,
    )

    def fit(name, runs, specs, length, rows, steps, questions, lr, schedule, params):
        def batches(step):
            by_seed = {
                seed: passkey.training_batch(wording, tokenizer, length, rows, seed, step, questions)
                for seed in config.seeds
            }
            return jax.tree.map(lambda *x: np.stack(x), *[by_seed[seed] for seed, _ in runs])

        with report.training_progress(f"train {name}") as progress:
            return train.fit_many(
                shape,
                [seed for seed, _ in runs],
                [rope.frequencies(spec) for spec in specs],
                batches,
                train.TrainConfig(
                    steps,
                    train.OptimizerConfig(
                        lr=lr, beta2=0.98, weight_decay=0.01, schedule=schedule, warmup=0.05, clip=1.0
                    ),
                    micro=max(1, min(rows, 2048 // length)),  # what stays in a core's cache
                ),
                folder / f"train-{name}",
                params=params,
                progress=progress,
            )

    runs = [(seed, r) for seed in config.seeds for r in sorted({spec.resonance for spec in specs})]
    plain = [rope.named("resonance-rope" if r else "rope", **settings) for _, r in runs]
    base = None
    for i, (length, steps, rows) in enumerate(
        zip(config.stages, config.stage_steps, config.stage_rows, strict=True)
    ):
        questions, schedule = (1, "cosine") if length == L else (config.questions, "constant")
        params = None if base is None else base.params
        base = fit(f"{i}-{length}", runs, plain, length, rows, steps, questions, config.lr, schedule, params)
    decoders = {run: base.lm(i) for i, run in enumerate(runs)}
    models = [
        (spec.title, spec, seed, decoders[seed, spec.resonance]) for spec in specs for seed in config.seeds
    ]
    yarn = {spec.resonance: spec for spec in specs if spec.method == "yarn"}
    again = [run for run in runs if run[1] in yarn]
    if again and config.finetune_steps:
        own = np.array([runs.index(run) for run in again])
        tuned = fit(
            "fine-tune",
            again,
            [yarn[r] for _, r in again],
            L,
            config.stage_rows[-1],
            config.finetune_steps,
            1,
            config.finetune_lr,
            "cosine",
            jax.tree.map(lambda x: x[own], base.params),
        )
        for r, spec in sorted(yarn.items()):
            models += [
                (spec.title + FINETUNED, spec, run[0], tuned.lm(i))
                for i, run in enumerate(again)
                if run[1] == r
            ]
    return models


def write_results(folder: Path, config: Config, cells: list[dict], seconds: float) -> None:
    """passkey.csv, passkey.png, and last passkey.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report import passkey

    rows = passkey.rows(cells)
    write_text(folder / "passkey.csv", report.csv_text(rows))
    models = f", {len(config.seeds)} models each" if config.seeds else ""
    trials = config.trials * max(1, len(config.seeds))
    title = f"Passkey, template {config.template}{models}: keys found of {trials} a cell (%)"
    passkey.heat_map(rows, folder / "passkey.png", title)
    result = {
        "table": passkey.table(cells),
        "template": config.template,
        "columns of found": FOUND,
        "found": [[cell[name] for name in FOUND] for cell in cells],
        "machine": report.machine(),
        "seconds_of_the_last_call": round(seconds, 1),
    }
    write_json(folder / "passkey.json", result)


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
