"""Many runs at once: encodings x seeds in one compiled program, because an encoding is data.

The runs are sharded over the local devices (one host device a core on CPU) and mapped inside: `vmap` on
accelerators, `lax.map` on CPU, where a larger working set only leaves the cache. Several steps are scanned
in one call.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder
from resonance_jax.model.parameters import create
from resonance_jax.train.loop import Evaluator, Progress, run_loop
from resonance_jax.train.optimizer import OptimizerConfig, make_optimizer
from resonance_jax.train.state import new_state
from resonance_jax.train.step import Batch, train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how a run trains. micro: rows a micro-batch (0: all). mapped: how the runs on one device
    are mapped, "vmap", "map" or "auto"."""

    steps: int
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    micro: int = 0
    steps_per_call: int = 8
    mapped: str = "auto"
    save_seconds: float = 30.0


@dataclasses.dataclass
class ManyRuns:
    """Trained runs. params: the params pytree with axis 0 = run (E); history: see train.run_loop."""

    config: DecoderConfig
    params: Any
    history: list[dict[str, Any]]

    def lm(self, run: int) -> Decoder:
        """Run `run` as a Decoder of its own."""
        return Decoder(self.config, params=jax.tree.map(lambda x: np.asarray(x[run]), self.params))


def stack_frequencies(tables: Sequence[rope.Frequencies]) -> rope.Frequencies:
    """E tables of one rotary size as one Frequencies with axis 0 = run. ValueError if the sizes differ."""
    sizes = {2 * np.shape(table.wavelength)[0] for table in tables}
    if len(sizes) != 1:
        raise ValueError(
            f"runs of one program need encodings of one rotary size, got {sorted(sizes)}; "
            "train the others in a run of their own."
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *tables)


def unstack_frequencies(stacked: rope.Frequencies) -> list[rope.Frequencies]:
    return [jax.tree.map(lambda x, e=e: np.asarray(x)[e], stacked) for e in range(len(stacked.wavelength))]


def _run_mesh(runs: int) -> Mesh:
    """As many local devices as divide the runs evenly."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if runs % n == 0)
    return Mesh(np.asarray(devices[:count]), ("runs",))


@functools.lru_cache(maxsize=16)
def _program(config: DecoderConfig, training: TrainConfig, mapped: str, mesh: Mesh, shared: bool):
    """jitted (states [E], freqs [E], batches [K] or [K, E]) -> (states, metrics [K, E]).

    Remembered by its settings, so that another call with the same ones compiles nothing.
    """
    tx = make_optimizer(training.optimizer, training.steps)

    def one(state, freqs, batches):
        return jax.lax.scan(
            lambda state, batch: train_step(config, tx, state, batch, freqs, training.micro), state, batches
        )

    def local(states, freqs, batches):
        if mapped == "vmap":
            return jax.vmap(one, in_axes=(0, 0, None if shared else 1), out_axes=(0, 1))(
                states, freqs, batches
            )
        if not shared:
            batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batches)
        runs = (states, freqs) if shared else (states, freqs, batches)
        step = (lambda run: one(*run, batches)) if shared else (lambda run: one(*run))
        states, metrics = jax.lax.map(step, runs)
        return states, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), metrics)

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("runs"), P("runs"), P() if shared else P(None, "runs")),
        out_specs=(P("runs"), P(None, "runs")),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


def fit_many(
    config: DecoderConfig,
    seeds: Sequence[int],
    train_freqs: rope.Frequencies | Sequence[rope.Frequencies],
    batches: Callable[[int], Batch],
    training: TrainConfig,
    run_dir: str | Path,
    *,
    params: Any = None,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    meta: dict[str, Any] | None = None,
) -> ManyRuns:
    """Train E runs, one a (seed, encoding) pair, in one compiled program; resumes from run_dir.

    seeds: E ints, of the first parameters and of dropout (equal seeds: equal first weights). train_freqs:
    E tables, or one Frequencies stacked on axis 0. batches(step) -> Batch of [B, T] arrays that every run
    sees, or [E, B, T], one a run; a function of the step alone. params: first weights [E, ...] instead of
    fresh ones. Which table a run is evaluated under is the evaluator's own affair: a (train, eval) pair is
    two lists in the same order. Raises ValueError when the counts differ.
    """
    if not isinstance(train_freqs, rope.Frequencies):
        train_freqs = stack_frequencies(train_freqs)
    runs = len(seeds)
    if len(train_freqs.wavelength) != runs:
        raise ValueError(f"{runs} seeds for {len(train_freqs.wavelength)} encodings; expected one a run.")
    tx = make_optimizer(training.optimizer, training.steps)
    mesh = _run_mesh(runs)
    by_run = NamedSharding(mesh, P("runs"))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    if params is None:
        params = jax.jit(jax.vmap(functools.partial(create, config)))(keys)
    dropout_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    first = jax.jit(jax.vmap(lambda params, key: new_state(params, tx, key)))
    states = jax.device_put(first(params, dropout_keys), by_run)
    freqs = jax.device_put(train_freqs, by_run)
    tokens = np.asarray(batches(0)["tokens"])
    mapped = training.mapped
    if mapped == "auto":
        mapped = "map" if jax.default_backend() == "cpu" else "vmap"
    program = _program(config, training, mapped, mesh, shared=tokens.ndim == 2)

    def advance(states, start, count):
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *(batches(start + i) for i in range(count)))
        return program(states, freqs, stacked)

    records = [rope.to_record(table) for table in unstack_frequencies(train_freqs)]
    states, history = run_loop(
        advance,
        states,
        training.steps,
        run_dir,
        {"encodings": records, "seeds": list(seeds), **(meta or {})},
        steps_per_call=training.steps_per_call,
        save_seconds=training.save_seconds,
        tokens_per_step=tokens.size * (runs if tokens.ndim == 2 else 1),
        evaluators=evaluators,
        progress=progress,
    )
    return ManyRuns(config, jax.tree.map(np.asarray, states.params), history)
