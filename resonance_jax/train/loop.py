"""The loop around a compiled training program: resume, progress, metrics, checkpoints, interruption."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resonance_jax.files import as_path
from resonance_jax.train.checkpoint import Checkpoints
from resonance_jax.train.history import History

Progress = Callable[..., None]
"""progress(done, total, **figures): called often; draws what it likes."""


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and saved its state; the same call goes on from there."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """`fn(state) -> {name: number or list}`, called every `every` steps and after the last one."""

    every: int
    fn: Callable[[Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A first state that is made only when there is no checkpoint. like: it, as ShapeDtypeStructs with
    shardings; make(): it."""

    like: Any
    make: Callable[[], Any]


def run_loop(
    advance: Callable[[Any, int, int], tuple[Any, dict[str, jax.Array]]],
    state: Any | Fresh,
    steps: int,
    run_dir: str | Path,
    meta: dict[str, Any],
    *,
    steps_per_call: int = 8,
    save_seconds: float = 30.0,
    tokens_per_step: int = 0,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    checkpoint_dir: str | None = None,
    keep: int = 2,
) -> tuple[Any, list[dict[str, Any]]]:
    """Drive `state` from where `run_dir` stands to `steps`; returns (state, history).

    advance(state, start, count) -> (state, metrics of shape [count, ...]) runs steps start … start+count-1
    and may donate its state. History holds one record a step ({"step", "loss", …}) and one an evaluation
    ({"step", "evaluation": {…}}), as in metrics.jsonl. A run that is killed resumes from its last checkpoint
    with the same numbers, because advance is a function of (state, step). Of several processes only the
    first one logs, draws and has what was logged before. run_dir and checkpoint_dir (default
    run_dir/checkpoints) may be gs://…; the newest `keep` checkpoints stay. Raises Interrupted after saving on
    SIGINT or SIGTERM (to any process), FloatingPointError when the loss is not finite (the last good state is
    the newest checkpoint), OSError when a checkpoint would not fit on the disk.
    """
    run_dir, evaluators, first = as_path(run_dir), list(evaluators), jax.process_index() == 0
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(checkpoint_dir or run_dir / "checkpoints", meta, keep)
        stack.callback(checkpoints.close)
        start = checkpoints.latest_step() or 0
        if start < steps:
            checkpoints.check_space(state.like if isinstance(state, Fresh) else state)
        if start:
            state = checkpoints.restore(state.like if isinstance(state, Fresh) else state)
        elif isinstance(state, Fresh):
            state = state.make()
        history = History(run_dir / "metrics.jsonl" if first else None, start)
        stack.callback(history.flush, due=True)
        step, saved, began = start, time.monotonic(), time.monotonic()
        asked_to_stop = stack.enter_context(_signals())

        while step < steps:
            count = min([steps_per_call, steps - step, *(e.every - step % e.every for e in evaluators)])
            state, metrics = advance(state, step, count)
            metrics = {name: np.asarray(value) for name, value in metrics.items()}
            for i in range(count):
                values = {name: value[i].tolist() for name, value in metrics.items()}
                history.add({"step": step + i + 1, **values})
            step += count
            if not np.isfinite(metrics["loss"]).all():
                raise FloatingPointError(
                    f"the loss is not finite within steps {step - count} to {step}; the last good state is "
                    f"the newest checkpoint in {run_dir}. Lower the learning rate, or look at those batches."
                )
            for evaluator in evaluators:
                if step % evaluator.every == 0 or step == steps:
                    history.add({"step": step, "evaluation": evaluator.fn(state)})
            history.flush()
            elapsed = time.monotonic() - began
            if progress is not None and first:
                rate = (step - start) * tokens_per_step / elapsed
                progress(step, steps, loss=float(metrics["loss"][-1].mean()), tokens_per_second=rate)
            stop, due = _agreed(asked_to_stop.is_set(), time.monotonic() - saved > save_seconds)
            if stop or step == steps or due:
                history.flush(due=True)
                checkpoints.save(step, state)
                saved = time.monotonic()
            if stop and step < steps:
                raise Interrupted(
                    f"stopped at step {step} of {steps}; run the same again to go on from there."
                )
    return state, history.records


def _agreed(stop: bool, due: bool) -> tuple[bool, bool]:
    """The same for all processes: stop when one was asked to, save when it is time on the first one."""
    if jax.process_count() == 1:
        return stop, due
    from jax.experimental.multihost_utils import process_allgather

    asked = np.asarray(process_allgather(np.asarray([stop, due])))
    return bool(asked[:, 0].any()), bool(asked[0, 1])


class _signals:
    """Within the block SIGINT and SIGTERM set an event; a second one acts as usual. Main thread only."""

    def __enter__(self) -> threading.Event:
        self._event, self._before = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self._event

    def _on_signal(self, number, frame) -> None:
        self._event.set()
        signal.signal(number, self._before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
