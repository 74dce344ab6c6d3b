"""One run on any mesh: resumable on other devices, its batches placed where the step wants them."""

import dataclasses
import functools
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Int

from resonance_jax import rope
from resonance_jax.files import AnyPath, as_path, atomic
from resonance_jax.model.decoder import Decoder
from resonance_jax.model.digest import weights_digest
from resonance_jax.settings.lora import LoraConfig
from resonance_jax.train import flops
from resonance_jax.train.batches import Ahead, Batches, check_rows, place_batch, reader, size
from resonance_jax.train.config import SEEDS, TrainConfig, check_whole
from resonance_jax.train.encodings import Encoding, context_length, spec_of, table
from resonance_jax.train.history import Record
from resonance_jax.train.identity import JSON, data_digest, identity
from resonance_jax.train.loop import Evaluator, Fresh, Progress, run_loop
from resonance_jax.train.run_program import RunProgram
from resonance_jax.train.state import TrainState
from resonance_jax.train.step import Batch, Metrics
from resonance_jax.train.trace import Trace


@dataclasses.dataclass
class Run:
    """A trained decoder, adapters merged, and its history: see run_loop; every record of a step has
    tokens_per_second too and, where the chip's peak is known, mfu."""

    lm: Decoder
    history: list[Record]


def fit(
    lm: Decoder,
    batches: Batches,
    encoding: Encoding,
    config: TrainConfig,
    run_dir: AnyPath,
    *,
    length: int | None = None,
    seed: int = 0,
    lora: LoraConfig | None = None,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    meta: dict[str, JSON] | None = None,
    checkpoint_dir: AnyPath | None = None,
    keep: int = 2,
    profile: int = 0,
    donate: bool = False,
) -> Run:
    """Train lm under one encoding for config.steps steps on lm.mesh; goes on where run_dir stands.

    Args:
        lm: the decoder to begin with. lm.config.dtype is that of the activations; the parameters are trained
            in promote_types(float32, dtype).
        batches: data.Batches, of which each process reads its own rows, or a function step -> Batch. A run
            that goes on is held to all the batches of the former, and to the first one of the latter: what
            else the function depends on belongs into meta.
        encoding: a RopeSpec, which the trained decoder then states (run.lm.rope), or a bare table, of which
            it can state nothing (None).
        config: how long, and with which optimizer.
        run_dir: where checkpoints and metrics.jsonl go, and from where it goes on.
        length: positions that a RopeSpec's table is made for; by default those of a row.
        seed: of dropout and of new adapters, in 0 … 2^32 - 1.
        lora: trains adapters instead of the weights.
        evaluators: called with the TrainState, whose params are the decoder's or the adapters.
        progress: see Progress.
        meta: JSON, kept with the checkpoints, that has to agree when the run goes on.
        checkpoint_dir, keep: see run_loop.
        profile: so many steps, after the first two, are traced into run_dir/profile.
        donate: give up lm's own parameters, which saves a copy of them; lm cannot be used afterwards.

    Raises:
        ValueError: rows that the mesh or the micro-batches do not divide; the checkpoints in run_dir are
            another run's (other settings, data, first weights or encoding), or all damaged.
        FloatingPointError: the loss is not finite; the batch is saved beside the run.
        Interrupted: see run_loop.
    """
    check_whole("seed", seed, 0, SEEDS)
    check_whole("profile", profile, 0)
    run_dir, mesh, read = as_path(run_dir), lm.mesh, reader(batches)
    rows, columns = size(batches)
    length = columns if length is None else length
    spec, freqs = spec_of(encoding), table(encoding, length, lm.config)
    check_rows(rows, config.micro, mesh)
    if lora and config.optimizer.freeze:
        raise ValueError("LoRA freezes the weights itself; optimizer.freeze has to be empty.")
    program = RunProgram(lm.config, config, mesh, lora)
    made_by = identity(
        [rope.to_record(freqs, spec)],
        lm.config,
        config,
        {
            "rows": rows,
            "row length": columns,
            "seed": seed,
            "lora": None if lora is None else dataclasses.asdict(lora),
            "data": data_digest(read, rows, mesh),
            "every batch": getattr(batches, "fingerprint", None),
            "first weights": weights_digest(lm.params),
        },
        meta,
    )
    trained, frozen = program.place(lm.params, seed, donate)
    devices = 1 if mesh is None else mesh.size
    kind = jax.devices()[0].device_kind

    def placed(step: int) -> dict[str, Int[Array, "B T"]]:
        return place_batch(functools.partial(read, step), rows, columns, mesh)

    ahead = Ahead(placed)

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        logged: list[Metrics] = []
        done: list[float] = []
        began = time.monotonic()
        for step in range(start, start + count):
            batch = ahead.take(step)
            trace.before_step(logged[-1:])
            state, metrics = program.step(state, frozen, batch, freqs)
            logged.append(metrics)
            trace.after_step(metrics)
            if step + 1 < config.steps:
                ahead.prepare(step + 1)
            # One step works and one waits behind it: the devices never wait for the host, nor it for them.
            if len(logged) > 1:
                jax.block_until_ready(logged[-2])
                done.append(time.monotonic())
        host = jax.device_get(logged)
        values = {name: np.stack([each[name] for each in host]) for name in host[0]}
        rate = rows * columns / np.diff([began, *done, time.monotonic()])
        values["tokens_per_second"] = rate
        share = flops.mfu(lm.config, columns, 1.0, devices, kind, lora)
        if share is not None:
            values["mfu"] = share * rate
        bad = np.flatnonzero(~np.isfinite(values["loss"]))
        if len(bad):
            step = start + int(bad[0])
            raise FloatingPointError(_keep_batch(run_dir, step, read(step, 0, rows)))
        return state, values

    with Trace(run_dir / "profile", profile) as trace:
        state, history = run_loop(
            advance,
            Fresh(program.like, lambda: program.first_state(trained, seed)),
            config.steps,
            run_dir,
            made_by,
            steps_per_call=config.steps_per_call,
            save_seconds=config.save_seconds,
            tokens_per_step=rows * columns,
            evaluators=evaluators,
            progress=progress,
            checkpoint_dir=checkpoint_dir,
            keep=keep,
        )
    trained_lm = lm.replace(
        params=program.merged(state.params, frozen),
        rope=spec,
        context_length=context_length(encoding, lm.context_length, columns, length),
    )
    return Run(trained_lm, history)


def _keep_batch(run_dir: Path, step: int, batch: Batch) -> str:
    """Save the batch; the sentence that says so."""
    path = run_dir / f"not-finite-step-{step + 1}.npz"
    if jax.process_index() == 0:
        with atomic(path) as temporary:
            np.savez(temporary, allow_pickle=False, **{name: np.asarray(x) for name, x in batch.items()})
    return (
        f"the loss of step {step + 1} is not finite; its batch is in {path}, the last good state is the "
        "newest checkpoint. Lower the learning rate, or look at that batch."
    )
