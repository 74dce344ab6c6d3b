"""The loop around a compiled training program: resume, progress, metrics, checkpoints, interruption."""

import contextlib
import dataclasses
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Num

from resonance_jax.files import AnyPath, as_path
from resonance_jax.train.checkpoint import Checkpoints
from resonance_jax.train.config import PACED_STEPS, check_whole
from resonance_jax.train.history import History, Record
from resonance_jax.train.identity import Identity

Progress = Callable[..., None]
"""progress(done, total, **figures): called often; draws what it likes."""

State = TypeVar("State")
"""A pytree of arrays."""

CALL_SECONDS = 1.0
"""About how long a call of advance lasts where nobody says of how many steps it is."""

Advance = Callable[[State, int, int], tuple[State, Mapping[str, Num[Array, "..."] | Num[np.ndarray, "..."]]]]
"""advance(state, start, count): (state, metrics [count, ...]) after the steps start … start + count - 1."""


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and saved its state; the same call goes on from there."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """`fn(state) -> {name: number or list}`, called every `every` steps and after the last one."""

    every: int
    fn: Callable[[Any], dict[str, Any]]

    def __post_init__(self) -> None:
        check_whole("every", self.every, 1)


@dataclasses.dataclass(frozen=True)
class Fresh(Generic[State]):
    """A first state that is built only when there is no checkpoint.

    like: the state as ShapeDtypeStructs with shardings. make: builds it.
    """

    like: State
    make: Callable[[], State]


def run_loop(
    advance: Advance[State],
    fresh: Fresh[State],
    steps: int,
    run_dir: AnyPath,
    made_by: Identity,
    *,
    steps_per_call: int | None = 8,
    save_seconds: float = 30.0,
    tokens_per_step: int = 0,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    checkpoint_dir: AnyPath | None = None,
    keep: int = 2,
) -> tuple[State, list[Record]]:
    """Drive a state from where `run_dir` stands to `steps`; returns (state, history).

    History holds one record per step ({"step", "loss", …}: one number each, or one per run), one per
    evaluation ({"step", "evaluation": {…}}), and one where some of several runs fail ({"step", "failed":
    [run, …]}), as metrics.jsonl does. A run that is killed goes on from its last checkpoint with the same
    numbers, because advance is a function of (state, step): to the bit on the same mesh. Another mesh adds
    sums up in another order, which makes a step differ by about 1e-7. Of several processes only the first one
    writes the log and draws, and has the records from before the run was resumed.

    Args:
        advance: may donate the state that it is given. A loss that is not finite says that its run failed.
        fresh: the first state.
        steps: where to stop.
        run_dir: the run's folder, which may be gs://…
        made_by: a checkpoint that something else made is refused.
        steps_per_call: at most so many steps in one call of advance, which signals, progress and the log wait
            for; None: as many as fit into CALL_SECONDS by the call before, at most PACED_STEPS.
        save_seconds: between checkpoints; one is always saved at the end.
        tokens_per_step: for the figures of progress.
        evaluators: see Evaluator.
        progress: see Progress.
        checkpoint_dir: where checkpoints go, by default run_dir/checkpoints.
        keep: how many of the newest checkpoints stay.

    Raises:
        Interrupted: SIGINT or SIGTERM came, to any process; the state is saved.
        FloatingPointError: no run's loss is finite any more; the newest checkpoint is from before.
        ValueError: the folder's checkpoints are another run's, further than `steps`, or all damaged.
        OSError: a checkpoint would not fit on the disk.
    """
    check_whole("keep", keep, 1)
    run_dir, evaluators, first = as_path(run_dir), list(evaluators), jax.process_index() == 0
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(checkpoint_dir or run_dir / "checkpoints", made_by, keep)
        stack.callback(checkpoints.close)
        resumed = checkpoints.resume(fresh.like)
        start, state, log = (0, None, None) if resumed is None else resumed
        if start > steps:
            raise ValueError(f"{run_dir} holds a checkpoint of step {start}, beyond the {steps} asked for.")
        if start < steps:
            checkpoints.check_space(fresh.like)
        state = fresh.make() if state is None else state
        history = History(run_dir / "metrics.jsonl" if first else None, start, log)
        failures = _Failures(history)
        stack.callback(history.flush, due=True)
        step, saved, began = start, time.monotonic(), time.monotonic()
        asked_to_stop = stack.enter_context(_signals())
        pace = steps_per_call or 1

        while step < steps:
            ends = (e.every - step % e.every for e in evaluators)
            count, called = min([pace, steps - step, *ends]), time.monotonic()
            state, metrics = advance(state, step, count)
            metrics = {name: np.asarray(value) for name, value in metrics.items()}
            pace = steps_per_call or paced(count, time.monotonic() - called)
            for i in range(count):
                values = {name: value[i].tolist() for name, value in metrics.items()}
                history.add({"step": step + i + 1, **values})
                failures.see(step + i + 1, metrics["loss"][i])
            step += count
            if not np.isfinite(metrics["loss"]).all(axis=0).any():
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
                progress(step, steps, loss=float(np.nanmean(metrics["loss"][-1])), tokens_per_second=rate)
            due = time.monotonic() - saved > save_seconds
            stop, due, pace = _agreed(asked_to_stop.is_set(), due, pace)
            if stop or step == steps or due:
                history.flush(due=True)
                checkpoints.save(step, state, history.digest())
                saved = time.monotonic()
            if stop and step < steps:
                raise Interrupted(
                    f"stopped at step {step} of {steps}; run the same again to go on from there."
                )
    return state, history.records


class _Failures:
    """Says once of each of several runs that it has failed, in the history and as a warning."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._known = {run for record in history.records for run in record.get("failed", ())}

    def see(self, step: int, losses: Float[np.ndarray, "..."] | np.floating) -> None:
        """losses: of one step, one number for each run."""
        finite = np.isfinite(losses)
        if losses.ndim == 0 or not finite.any():
            return
        new = [run for run in np.flatnonzero(~finite).tolist() if run not in self._known]
        if new:
            self._known.update(new)
            self._history.add({"step": step, "failed": new})
            warnings.warn(
                f"step {step} is not finite in run {', '.join(map(str, new))} of {len(losses)} (counted from "
                "0): it stays as it was before that step, and the others go on.",
                stacklevel=3,
            )


def paced(steps: int, seconds: float) -> int:
    """Steps that fit into CALL_SECONDS, 1 to PACED_STEPS, where so many steps took so many seconds."""
    return max(1, int(min(PACED_STEPS, steps * CALL_SECONDS / max(seconds, 1e-6))))


def _agreed(stop: bool, due: bool, pace: int) -> tuple[bool, bool, int]:
    """The same for all processes: stop when one was asked to, save and pace as the first one says."""
    if jax.process_count() == 1:
        return stop, due, pace
    from jax.experimental.multihost_utils import process_allgather

    asked = np.asarray(process_allgather(np.asarray([stop, due, pace], np.int32)))
    return bool(asked[:, 0].any()), bool(asked[0, 1]), int(asked[0, 2])


class _signals:
    """Within the block SIGINT and SIGTERM set an event; a second one acts as usual. Main thread only."""

    def __enter__(self) -> threading.Event:
        self._event, self._before = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self._event

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
