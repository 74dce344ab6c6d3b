"""One run on any mesh: the step compiled once, its state cut over the devices, resumable on other devices.

Parameters and optimizer moments lie alike, by the logical axes of the parameters; rows of a batch are cut
over (data, fsdp), time over sequence. Master weights and moments are float32 (or float64) whatever the
activations compute in.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from resonance_jax import rope
from resonance_jax.files import as_path, atomic
from resonance_jax.model import lora as adapters
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder
from resonance_jax.model.lora import LoraConfig
from resonance_jax.model.parameters import map_declared
from resonance_jax.parallel.mesh import sharding
from resonance_jax.train import flops
from resonance_jax.train.loop import Evaluator, Fresh, Progress, run_loop
from resonance_jax.train.many import TrainConfig
from resonance_jax.train.optimizer import make_optimizer
from resonance_jax.train.state import TrainState, new_state
from resonance_jax.train.step import Batch, train_step
from resonance_jax.train.trace import Trace

MICRO_POSITIONS = 1024
"""Positions of a micro-batch that a device should have, where short rows allow it."""


@dataclasses.dataclass
class Run:
    """lm: the trained decoder, adapters merged. history: see run_loop; with tokens_per_second and, where the
    chip's peak is known, mfu."""

    lm: Decoder
    history: list[dict[str, Any]]


def fit(
    lm: Decoder,
    batches,
    freqs: rope.Frequencies,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    seed: int = 0,
    lora: LoraConfig | None = None,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    meta: dict[str, Any] | None = None,
    checkpoint_dir: str | None = None,
    keep: int = 2,
    profile: int = 0,
    donate: bool = False,
) -> Run:
    """Train lm under one encoding for config.steps steps on lm.mesh; goes on where run_dir stands.

    batches: data.Batches, of which each process reads its own rows, or a function step -> Batch of [B, T].
    lm.config.dtype is that of the activations; the parameters are trained in promote_types(float32, dtype).
    seed: of dropout and of new adapters. lora: train adapters instead of the weights. evaluators: called with
    the TrainState, whose params are then the decoder's or the adapters. checkpoint_dir, keep: see run_loop.
    profile: so many steps, after the first two, are traced into run_dir/profile. donate: give up lm's own
    parameters, which saves a copy of them; lm cannot be used afterwards.

    Raises ValueError for rows that the mesh or the micro-batches do not divide and for a checkpoint of
    another encoding, FloatingPointError for a loss that is not finite, its batch saved beside the run, and
    Interrupted.
    """
    run_dir, mesh, read = as_path(run_dir), lm.mesh, reader(batches)
    rows, length = size(batches)
    _check(rows, config.micro, mesh)
    if lora and config.optimizer.freeze:
        raise ValueError("LoRA freezes the weights itself; optimizer.freeze has to be empty.")
    program = Program(lm.config, config, mesh, lora)
    trained, frozen = program.place(lm.params, seed, donate)
    devices = 1 if mesh is None else mesh.size
    kind = jax.devices()[0].device_kind

    def advance(state, start, count):
        logged = []
        for step in range(start, start + count):
            trace.before_step()
            batch = place_batch(functools.partial(read, step), rows, length, mesh)
            began = time.monotonic()
            state, metrics = program.step(state, frozen, batch, freqs)
            metrics = {name: np.asarray(value) for name, value in metrics.items()}
            rate = rows * length / (time.monotonic() - began)
            share = flops.mfu(lm.config, length, rate, devices, kind)
            logged.append(metrics | {"tokens_per_second": rate} | ({} if share is None else {"mfu": share}))
            trace.after_step()
            if not np.isfinite(metrics["loss"]):
                raise FloatingPointError(_keep_batch(run_dir, step, read(step, 0, rows)))
        return state, {name: np.stack([entry[name] for entry in logged]) for name in logged[0]}

    with Trace(run_dir / "profile", profile) as trace:
        state, history = run_loop(
            advance,
            Fresh(program.like, lambda: program.first_state(trained, seed)),
            config.steps,
            run_dir,
            {"encodings": [rope.to_record(freqs)], "config": dataclasses.asdict(lm.config), **(meta or {})},
            steps_per_call=config.steps_per_call,
            save_seconds=config.save_seconds,
            tokens_per_step=rows * length,
            evaluators=evaluators,
            progress=progress,
            checkpoint_dir=checkpoint_dir,
            keep=keep,
        )
    return Run(lm.replace_params(program.merged(state.params, frozen)), history)


class Program:
    """The compiled training step of one decoder and where everything lies.

    step(state, frozen, batch, freqs) -> (state, metrics), the state donated; like: the state as
    ShapeDtypeStructs with shardings. Without adapters `frozen` is empty and state.params are the decoder's.
    """

    def __init__(
        self, config: DecoderConfig, training: TrainConfig, mesh=None, lora: LoraConfig | None = None
    ):
        self.config, self.mesh, self.lora = config, mesh, lora
        self.dtype = jnp.promote_types(jnp.float32, config.dtype)
        self.tx = make_optimizer(training.optimizer, training.steps)
        self.everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        trained = jax.eval_shape(functools.partial(self._trained, seed=0), self._abstract_params())
        state = jax.eval_shape(self._first, trained, 0)
        where = None if mesh is None else self._shardings(state)
        self.like = state if where is None else jax.tree.map(_placed, state, where)
        decoder = None if lora is None else self._adapted

        def step(state, frozen, batch, freqs):
            own = None if decoder is None else functools.partial(decoder, frozen=frozen)
            return train_step(config, self.tx, state, batch, freqs, training.micro, own)

        out = {} if where is None else {"out_shardings": (where, self.everywhere)}
        self.step = jax.jit(step, donate_argnums=0, **out)
        self._where = where

    def place(self, params, seed: int, donate: bool = False):
        """(trained, frozen) from the decoder's params, each where it belongs, trained ones in self.dtype."""
        where = None if self._where is None else self._where.params
        options = {} if where is None else {"out_shardings": where}
        # A jitted function hands an unchanged input through; training would then give it away.
        own = (lambda x: x) if donate else (lambda x: jnp.copy(x))
        make = lambda params, seed: jax.tree.map(own, self._trained(params, seed))
        trained = jax.jit(make, **options)(params, np.uint32(seed))
        frozen = {} if self.lora is None else adapters.split(params, self.lora)[1]
        return trained, frozen

    def first_state(self, trained, seed: int) -> TrainState:
        """The state before the first step. Gives `trained` away to it."""
        options = {} if self._where is None else {"out_shardings": self._where}
        return jax.jit(self._first, **options)(trained, np.uint32(seed))

    def merged(self, trained, frozen):
        """The decoder's params pytree, adapters added in; lies as a decoder's params do."""
        if self.lora is None:
            return trained
        params = adapters.unflatten({**frozen, **trained["whole"]})
        where = None if self.mesh is None else _decoder_shardings(self.config, self.mesh)
        options = {} if where is None else {"out_shardings": where}
        merge = jax.jit(lambda p, a: adapters.merge(p, a, self.lora), **options)
        return merge(params, trained["adapters"])

    def _abstract_params(self):
        return map_declared(lambda _, p: jax.ShapeDtypeStruct(p.shape, self.dtype), self.config)

    def _trained(self, params, seed):
        if self.lora is None:
            return jax.tree.map(lambda x: x.astype(self.dtype), params)
        whole, _ = adapters.split(params, self.lora)
        key = jax.random.fold_in(jax.random.key(seed), 2)
        return {
            "adapters": adapters.create(self.config, self.lora, key, self.dtype),
            "whole": {path: x.astype(self.dtype) for path, x in whole.items()},
        }

    def _first(self, trained, seed) -> TrainState:
        return new_state(trained, self.tx, jax.random.fold_in(jax.random.key(seed), 1))

    def _adapted(self, trained, frozen):
        params = adapters.unflatten({**frozen, **trained["whole"]})
        return adapters.adapt(params, trained["adapters"], self.lora)

    def _shardings(self, state: TrainState) -> TrainState:
        """The state's pytree as shardings: moments as their parameters, all else everywhere."""
        params = _decoder_shardings(self.config, self.mesh)
        if self.lora is not None:
            whole, _ = adapters.split(params, self.lora)
            params = {"adapters": adapters.shardings(self.config, self.lora, self.mesh), "whole": whole}
        moments = optax.tree_map_params(
            self.tx,
            lambda _, where: where,
            state.opt_state,
            params,
            transform_non_params=lambda _: self.everywhere,
        )
        return TrainState(params, moments, self.everywhere, self.everywhere)


def _decoder_shardings(config: DecoderConfig, mesh):
    return map_declared(lambda _, p: sharding(mesh, p.axes, p.shape), config)


def _placed(x, where):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def micro_rows(rows: int, length: int, shards: int) -> int:
    """Rows of a micro-batch: one a shard, or as many as make up MICRO_POSITIONS; a divisor of `rows`."""
    each = max(1, rows // shards)
    most = max(1, MICRO_POSITIONS // length)
    return shards * max(n for n in range(1, each + 1) if each % n == 0 and n <= most)


def size(batches) -> tuple[int, int]:
    """(rows B, length T) of every batch."""
    if hasattr(batches, "rows"):
        return batches.batch_size, batches.length
    return np.shape(batches(0)["tokens"])


def reader(batches) -> Callable[..., Batch]:
    """read(step, start, stop) -> those rows of the step's batch, on the host."""
    if hasattr(batches, "rows"):
        return lambda step, start, stop: {"tokens": batches.rows(step, start, stop)}
    return lambda step, start, stop: {k: np.asarray(v)[start:stop] for k, v in batches(step).items()}


def place_batch(read: Callable[[int, int], Batch], rows: int, length: int, mesh) -> Batch:
    """The batch on the devices; only the rows of this process's own devices are read."""
    remembered = functools.lru_cache(maxsize=None)(read)
    if mesh is None:
        return jax.device_put(remembered(0, rows))

    shape = rows, length
    where = sharding(mesh, ("batch", "time"), shape)

    def part(index) -> Batch:
        start, stop, _ = index[0].indices(rows)
        return {name: x[:, index[1]] for name, x in remembered(start, stop).items()}

    own = next(iter(where.addressable_devices_indices_map(shape).values()))
    return {
        name: jax.make_array_from_callback(shape, where, lambda index, name=name: part(index)[name])
        for name in part(own)
    }


def _check(rows: int, micro: int, mesh) -> None:
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    for what, count in (("a batch", rows), ("a micro-batch", micro or rows)):
        if count % shards:
            raise ValueError(
                f"{what} of {count} rows cannot be cut over {shards} devices (data x fsdp of the mesh); "
                f"choose a multiple of {shards}."
            )
    if micro and rows % micro:
        raise ValueError(f"a batch of {rows} rows cannot be cut in micro-batches of {micro}.")


def _keep_batch(run_dir: Path, step: int, batch: Batch) -> str:
    """Save the batch; the sentence that says so."""
    path = run_dir / f"not-finite-step-{step + 1}.npz"
    if jax.process_index() == 0:
        with atomic(path) as temporary:
            np.savez(temporary, **batch)
    return (
        f"the loss of step {step + 1} is not finite; its batch is in {path}, the last good state is the "
        "newest checkpoint. Lower the learning rate, or look at that batch."
    )
