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
from resonance_jax.train.encodings import stack_frequencies, unstack_frequencies
from resonance_jax.train.loop import Evaluator, Fresh, Progress, run_loop
from resonance_jax.train.many_program import ManyRunsProgram
from resonance_jax.train.step import Batch


@dataclasses.dataclass
class ManyRuns:
    """Trained runs. params: the params pytree with axis 0 = run (E); history: see train.run_loop."""

    config: DecoderConfig
    params: Any
    history: list[dict[str, Any]]

    def lm(self, run: int) -> Decoder:
        """Run `run` as a Decoder of its own."""
        return Decoder(self.config, params=jax.tree.map(lambda x: np.asarray(x[run]), self.params))


def fit_many(
    config: DecoderConfig,
    seeds: Sequence[int],
    train_freqs: rope.Frequencies | Sequence[rope.Frequencies],
    batches: Callable[[int], Any],
    training: TrainConfig,
    run_dir: str | Path,
    *,
    examples: Batch | None = None,
    params: Any = None,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    meta: dict[str, Any] | None = None,
) -> ManyRuns:
    """Train E runs, one a (seed, encoding) pair, in one compiled program; resumes from run_dir.

    seeds: E ints, of the first parameters and of dropout (equal seeds: equal first weights). train_freqs:
    E tables, or one Frequencies stacked on axis 0. batches(step) -> Batch of [B, T] arrays that every run
    sees, or [E, B, T], one a run; a function of the step alone. examples: a Batch of [rows, T] arrays that
    stays on the devices; batches(step) then gives row numbers, i32[B] or [E, B], -1 for a row that is not
    there. params: first weights [E, ...] instead of fresh ones. Which table a run is evaluated under is the
    evaluator's own affair: a (train, eval) pair is two lists in the same order. Raises ValueError when the
    counts differ, and before anything is made when the runs need more memory than is free.
    """
    if not isinstance(train_freqs, rope.Frequencies):
        train_freqs = stack_frequencies(train_freqs)
    program = ManyRunsProgram(config, seeds, train_freqs, batches, training, examples, params)
    records = [rope.to_record(table) for table in unstack_frequencies(train_freqs)]
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
    return ManyRuns(config, jax.tree.map(np.asarray, states.params), history)
