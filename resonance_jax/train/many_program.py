"""The compiled program of many runs: encodings x seeds at once, because an encoding is data.

The runs are sharded over the local devices (on CPU one host device per core). Those of one device are mapped:
by `vmap` on accelerators, by `lax.map` on CPU, where all at once would only outgrow the cache. Several steps
run in one call, and one compiled program serves every number of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Params
from resonance_jax.model.parameters import create
from resonance_jax.parallel import memory
from resonance_jax.train.batches import Ahead
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.encodings import count_of, stack_frequencies
from resonance_jax.train.optimizer import make_optimizer
from resonance_jax.train.state import TrainState, new_state
from resonance_jax.train.step import IGNORE, METRICS, Batch, Metrics, train_step, with_labels

ManyBatches = Callable[[int], Batch | Int[np.ndarray, "*E B"]]
"""What fit_many trains on: a function of the step, which fit_many describes."""
Steps = Mapping[str, Int[Array | np.ndarray, "K *E B _"]]
"""The batches of K steps: one for all runs, or one for each of E."""
Examples = Mapping[str, Int[Array | np.ndarray, "examples _"]]
"""Rows that stay on the devices, so that a batch need only give row numbers."""


def _run_mesh(runs: int) -> Mesh:
    """As many local devices as divide the runs evenly."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if runs % n == 0)
    return Mesh(np.asarray(devices[:count]), ("runs",))


def _batch(examples: Examples | None, batch: Batch | Int[Array, "B"]) -> Batch:
    """The batch itself, or the examples of its row numbers; nothing of row -1 is scored."""
    if isinstance(batch, Mapping):
        return batch
    if examples is None:
        raise ValueError("batches give row numbers, but there are no examples to take them from.")
    rows = with_labels(jax.tree.map(lambda x: x[jnp.maximum(batch, 0)], examples))
    return {**rows, "labels": jnp.where(batch[:, None] < 0, IGNORE, rows["labels"])}


def _guarded_step(
    config: DecoderConfig,
    tx: optax.GradientTransformation,
    state: TrainState,
    number: Int[Array, ""],
    batch: Batch,
    freqs: rope.Tables,
    micro: int,
) -> tuple[TrainState, Metrics]:
    """train_step for step `number`, unless the run has failed in it or before: then the state stays.

    A run fails in the first step whose loss, gradient or update is not finite. Its count of steps stands
    still from then on, which is how the failure is remembered, and its loss is reported as NaN.
    """
    new, metrics = train_step(config, tx, state, batch, freqs, micro)
    good = (state.step == number) & jnp.isfinite(jnp.stack(list(metrics.values()))).all()
    kept = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    state = TrainState(
        kept(new.params, state.params),
        kept(new.opt_state, state.opt_state),
        kept(new.step, state.step),
        state.key,
    )
    return state, {**metrics, "loss": jnp.where(good, metrics["loss"], jnp.nan)}


@functools.lru_cache(maxsize=16)
def _program(
    config: DecoderConfig, training: TrainConfig, mapped: str, mesh: Mesh, shared: bool
) -> jax.stages.Wrapped:
    """jitted (states [E], freqs [E], batches [K] or [K, E], examples, start, count) -> (states, metrics
    [K, E]).

    Runs the first `count` of the K batches, which are those of the steps start, start + 1, … Remembered by
    its settings, so that another call with the same ones compiles nothing.
    """
    tx = make_optimizer(training.optimizer, training.steps)
    wide = jnp.promote_types(jnp.float32, config.dtype)

    def one(
        state: TrainState,
        freqs: rope.Tables,
        batches: Steps | Int[Array, "K B"],
        examples: Examples | None,
        start: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[TrainState, Metrics]:
        def step(i: Int[Array, ""], carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, log = carry
            batch = _batch(examples, jax.tree.map(lambda x: x[i], batches))
            state, metrics = _guarded_step(config, tx, state, start + i, batch, freqs, training.micro)
            return state, {name: log[name].at[i].set(metrics[name].astype(wide)) for name in METRICS}

        log = {name: jnp.zeros(training.most_steps_per_call, wide) for name in METRICS}
        return jax.lax.fori_loop(0, count, step, (state, log))

    def local(
        states: TrainState,
        freqs: rope.Tables,
        batches: Steps | Int[Array, "K *E B"],
        examples: Examples | None,
        start: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[TrainState, Metrics]:
        if mapped == "vmap":
            axes = (0, 0, None if shared else 1, None, None, None)
            runs = jax.vmap(one, in_axes=axes, out_axes=(0, 1))
            return runs(states, freqs, batches, examples, start, count)
        if shared:
            own = lambda run: one(run[0], run[1], batches, examples, start, count)
            states, log = jax.lax.map(own, (states, freqs))
        else:
            batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batches)
            own = lambda run: one(run[0], run[1], run[2], examples, start, count)
            states, log = jax.lax.map(own, (states, freqs, batches))
        return states, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), log)

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("runs"), P("runs"), P() if shared else P(None, "runs"), P(), P(), P()),
        out_specs=(P("runs"), P(None, "runs")),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


def _refuse_too_many(compiled: jax.stages.Compiled, runs: int, mesh: Mesh, mapped: str) -> None:
    """Raise ValueError, saying how many runs fit, when the program takes more memory than is free."""
    devices = list(mesh.devices.flat)
    free = memory.free(devices)
    lasting, temporary = memory.needed(compiled)
    if free is None or lasting + temporary <= free:
        return
    # Mapped one after another the runs share their temporaries; under vmap each has its own.
    own, common = (lasting, temporary) if mapped == "map" else (lasting + temporary, 0)
    fit = max(0, int((free - common) / (own / (runs / len(devices))))) * len(devices)
    raise ValueError(
        f"{runs} runs at once need {memory.readable(lasting + temporary)} on each of {len(devices)} "
        f"{devices[0].platform} devices, of which {memory.readable(free)} are free: "
        + (f"about {fit} runs fit; train fewer at once." if fit else "not even one fits; make it smaller.")
    )


class ManyRunsProgram:
    """The compiled program of E runs: `first` makes their states, `advance` trains them for some steps.

    Arguments as those of fit_many, with tables (`freqs`) for encodings. It is compiled before any state is
    made. Raises ValueError when the counts differ and when the runs need more memory than is free.
    """

    def __init__(
        self,
        config: DecoderConfig,
        seeds: Sequence[int],
        freqs: rope.Tables | Sequence[rope.Tables],
        batches: ManyBatches,
        training: TrainConfig,
        examples: Examples | None = None,
        params: Params | None = None,
    ) -> None:
        if not isinstance(freqs, rope.Frequencies | dict):
            freqs = stack_frequencies(freqs)
        runs, encodings = len(seeds), count_of(freqs)
        if encodings != runs:
            raise ValueError(f"{runs} seeds for {encodings} encodings; expected one for each run.")
        self._batches, self._training = batches, training
        self._keys = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))
        self._params, self._create = params, jax.jit(jax.vmap(functools.partial(create, config)))
        tx = make_optimizer(training.optimizer, training.steps)
        self._state = jax.jit(jax.vmap(lambda params, key: new_state(params, tx, jax.random.fold_in(key, 1))))
        mesh = _run_mesh(runs)
        self._by_run = NamedSharding(mesh, P("runs"))
        self._freqs = jax.device_put(freqs, self._by_run)
        self._examples = jax.device_put(examples, NamedSharding(mesh, P()))
        batch = jax.tree.map(np.asarray, batches(0))
        rows = batch["tokens"] if examples is None else batch
        shared = rows.ndim == (2 if examples is None else 1)
        tokens = rows.size * (1 if examples is None else examples["tokens"].shape[1])
        self.tokens_per_step = tokens * (runs if shared else 1)
        self._where = NamedSharding(mesh, P() if shared else P(None, "runs"))
        self._ahead = Ahead(self._placed)
        mapped = training.mapped
        if mapped == "auto":
            mapped = "map" if jax.default_backend() == "cpu" else "vmap"
        self._run = _program(config, training, mapped, mesh, shared)
        compiled = self._run.lower(self.like(), *self._arguments(0, 1)).compile()
        _refuse_too_many(compiled, runs, mesh, mapped)

    def like(self) -> TrainState:
        """The states [E] as ShapeDtypeStructs with shardings."""
        params = jax.eval_shape(self._create, self._keys) if self._params is None else self._params
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._by_run),
            jax.eval_shape(self._state, params, self._keys),
        )

    def first(self) -> TrainState:
        """The states [E] that training begins with."""
        params = self._create(self._keys) if self._params is None else self._params
        return jax.device_put(self._state(params, self._keys), self._by_run)

    def _placed(self, start: int) -> Steps | Int[Array, "K *E B"]:
        """The batches of the steps from `start` on that one call may run, on the devices."""
        # One shape for every call: at the end the last batch is repeated.
        last, count = self._training.steps - 1, self._training.most_steps_per_call
        steps = [self._batches(min(start + i, last)) for i in range(count)]
        return jax.device_put(jax.tree.map(lambda *rows: np.stack(rows), *steps), self._where)

    def _arguments(self, start: int, count: int) -> tuple:
        return self._freqs, self._ahead.take(start), self._examples, np.int32(start), np.int32(count)

    def advance(
        self, states: TrainState, start: int, count: int
    ) -> tuple[TrainState, dict[str, Float[np.ndarray, "count E"]]]:
        """(states, metrics) after the steps start … start + count - 1. Donates the states given.

        A run that is no longer finite keeps its last finite state, and its loss is NaN from then on. The
        batches of the next call are read while these steps run.
        """
        states, metrics = self._run(states, *self._arguments(start, count))
        if start + count < self._training.steps:
            self._ahead.prepare(start + count)
        return states, {name: np.asarray(value)[:count] for name, value in metrics.items()}
