"""Many runs at once: one a (seed, encoding) pair, trained by one compiled program."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.encodings import (
    Encoding,
    context_length,
    spec_of,
    stack_frequencies,
    table,
    unstack_frequencies,
)
from resonance_jax.train.loop import Evaluator, Fresh, Progress, run_loop
from resonance_jax.train.many_program import ManyRunsProgram
from resonance_jax.train.step import Batch


@dataclasses.dataclass
class ManyRuns:
    """Trained runs. params: the params pytree with axis 0 = run (E); history: see train.run_loop. ropes,
    context_lengths: of each run what its decoder states (None: trained under a bare table)."""

    config: DecoderConfig
    params: Any
    history: list[dict[str, Any]]
    ropes: tuple[rope.RopeSpec | None, ...]
    context_lengths: tuple[int, ...]

    def lm(self, run: int) -> Decoder:
        """Run `run` as a Decoder of its own, which states the encoding that it was trained under."""
        return Decoder(
            self.config,
            rope=self.ropes[run],
            params=jax.tree.map(lambda x: np.asarray(x[run]), self.params),
            context_length=self.context_lengths[run],
        )


def _row_length(batches: Callable[[int], Any], examples: Batch | None) -> int:
    """Positions in a row of what fit_many is given."""
    rows = batches(0) if examples is None else examples
    return np.shape(rows["tokens"])[-1]


def fit_many(
    config: DecoderConfig,
    seeds: Sequence[int],
    encodings: Sequence[Encoding] | rope.Frequencies,
    batches: Callable[[int], Any],
    training: TrainConfig,
    run_dir: str | Path,
    *,
    length: int | None = None,
    examples: Batch | None = None,
    params: Any = None,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    meta: dict[str, Any] | None = None,
) -> ManyRuns:
    """Train E runs, one a (seed, encoding) pair, in one compiled program; resumes from run_dir.

    seeds: E ints, of the first parameters and of dropout (equal seeds: equal first weights). encodings:
    E RopeSpecs, whose tables are made for `length` positions (default: those of a row), or E tables, or one
    Frequencies stacked on axis 0. batches(step) -> Batch of [B, T] arrays that every run
    sees, or [E, B, T], one a run; a function of the step alone. examples: a Batch of [rows, T] arrays that
    stays on the devices; batches(step) then gives row numbers, i32[B] or [E, B], -1 for a row that is not
    there. params: first weights [E, ...] instead of fresh ones. Which table a run is evaluated under is the
    evaluator's own affair: a (train, eval) pair is two lists in the same order. Raises ValueError when the
    counts differ, and before anything is made when the runs need more memory than is free.
    """
    if isinstance(encodings, rope.RopeSpec):
        raise ValueError(f"expected one encoding a run, got {encodings} alone; give a list of them.")
    if isinstance(encodings, rope.Frequencies):
        encodings = unstack_frequencies(encodings)
    columns = _row_length(batches, examples)
    length = columns if length is None else length
    tables = [table(encoding, length, config) for encoding in encodings]
    program = ManyRunsProgram(config, seeds, stack_frequencies(tables), batches, training, examples, params)
    ropes = tuple(spec_of(encoding) for encoding in encodings)
    records = [rope.to_record(*of_run) for of_run in zip(tables, ropes, strict=True)]
    states, history = run_loop(
        program.advance,
        Fresh(program.like(), program.first),
        training.steps,
        run_dir,
        {"encodings": records, "seeds": list(seeds), **(meta or {})},
        steps_per_call=training.steps_per_call,
        save_seconds=training.save_seconds,
        tokens_per_step=program.tokens_per_step,
        evaluators=evaluators,
        progress=progress,
    )
    reached = tuple(context_length(encoding, columns, length) for encoding in encodings)
    return ManyRuns(config, jax.tree.map(np.asarray, states.params), history, ropes, reached)
