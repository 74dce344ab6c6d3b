"""Passkey retrieval: how far, and how deep, an encoding lets a model find a number hidden in text.

    python -m experiments.passkey cpu
    python -m experiments.passkey checkpoint --checkpoints PATH --encodings own yarn resonance-yarn

Stop it at any time: the same command goes on with the next cell. configs/passkey.py has every setting.
"""

from __future__ import annotations

import dataclasses

from configs.passkey import Config
from resonance_jax.command import (
    decoding_mesh,
    kept_result,
    open_run_of_first,
    together,
    use_every_core,
    use_precision,
    with_chosen_dtype,
)
from resonance_jax.command.bounds import check_at_least, check_some


def run(config: Config) -> int:
    """Ask what is missing, then print the table; 3: a model is left out because its training diverged."""
    _check(config)
    use_every_core()
    with together():
        return ask(config)


def ask(config: Config) -> int:
    """Ask and print, with the other processes of the mesh if there are any."""
    from experiments.passkey.study import Checkpoints
    from experiments.passkey.trained import Trained
    from resonance_jax.parallel.distributed import of_first
    from resonance_jax.report.tables import print_table

    # Models that are trained here are in float32.
    config = with_chosen_dtype(config) if config.checkpoints else dataclasses.replace(config, dtype="float32")
    use_precision(config.precision, config.dtype)
    mesh = decoding_mesh(config.tensor)
    study = Checkpoints(config, mesh) if config.checkpoints else Trained(config)
    folder = open_run_of_first("passkey", config)
    identity = study.identity()
    kept = of_first(lambda: kept_result(folder / "passkey.json", identity))
    result = kept or study.result(folder, identity)
    print_table(result["table"], heading(config))
    if gaps := result.get("differences"):  # results of earlier versions have none
        print_table(gaps, "Differences in keys found (points), paired by model")
    for sentence in result["left_out"]:
        print(sentence)
    print(f"{folder}/passkey.png  {folder}/passkey.csv")
    return 3 if result["left_out"] else 0


def heading(config: Config) -> str:
    """The title of the printed table."""
    many = "; lowest and highest model in parentheses" if len(config.seeds) > 1 else ""
    return f"Keys found (%), template {config.template}, by prompt tokens, all depths{many}"


def _check(config: Config) -> None:
    """Raise ValueError before anything is read or made."""
    from resonance_jax.evaluate import passkey

    passkey.template(config.template)
    check_some(config, "encodings", "lengths", "depths")
    check_at_least(config, 1, "lengths", "trials", "scale", "train_length", "batch_size")
    check_at_least(config, 0, "depths", "seed", "seeds")
    if max(config.depths) > 1:
        raise ValueError(f"--depths must be at most 1, got {max(config.depths)}.")
    if config.checkpoints:
        return
    if config.tensor:
        raise ValueError("models trained here lie on one device each; --tensor goes with --checkpoints.")
    if not config.seeds:
        raise ValueError("give --checkpoints PATH, or take the preset cpu, which trains small models.")
    check_some(config, "stages")
    check_at_least(config, 1, "stages", "stage_steps", "stage_rows", "questions")
    check_at_least(config, 1, "d_model", "n_layers", "head_dim")
    check_at_least(config, 0, "finetune_steps", "lr", "finetune_lr")
    if "own" in config.encodings or config.train_length != config.stages[-1]:
        raise ValueError(
            "models trained here have no encoding of their own, and their L is the last of --stages: give "
            f"--encodings by name and --train-length {config.stages[-1]}."
        )
    if not len(config.stages) == len(config.stage_steps) == len(config.stage_rows):
        raise ValueError("--stages, --stage-steps and --stage-rows must be as many.")
