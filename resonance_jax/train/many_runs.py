"""Many runs at once: one for each (seed, encoding) pair, trained by one compiled program."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from resonance_jax import rope
from resonance_jax.files import AnyPath
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder, Params
from resonance_jax.model.digest import weights_digest
from resonance_jax.train.config import SEEDS, TrainConfig, check_whole
from resonance_jax.train.encodings import (
    Encoding,
    context_length,
    spec_of,
    stack_frequencies,
    table,
    unstack_frequencies,
)
from resonance_jax.train.history import Record
from resonance_jax.train.identity import JSON, arrays_digest, identity
from resonance_jax.train.loop import Evaluator, Fresh, Progress, run_loop
from resonance_jax.train.many_program import ManyBatches, ManyRunsProgram
from resonance_jax.train.step import Batch


@dataclasses.dataclass
class ManyRuns:
    """E trained runs.

    Attributes:
        config: of every run's decoder.
        params: the params pytree with axis 0 = run.
        history: see run_loop.
        ropes: the encoding that each run's decoder states; None: it was trained under a bare table.
        context_lengths: how many positions each run's decoder serves.
        failed: run -> the step (counted from 1) in which its loss, gradient or update was not finite; its
            params are those from before that step.
    """

    config: DecoderConfig
    params: Params
    history: list[Record]
    ropes: tuple[rope.Specs | None, ...]
    context_lengths: tuple[int, ...]
    failed: dict[int, int] = dataclasses.field(default_factory=dict)

    def failures(self, names: Sequence[str]) -> list[str]:
        """A sentence on each run that failed. names: what people call the runs, one for each."""
        return [
            f"{names[run]} is left out: its training diverged in step {step}."
            for run, step in sorted(self.failed.items())
        ]

    def lm(self, run: int) -> Decoder:
        """Run `run` as a Decoder of its own, which states the encoding that it was trained under."""
        return Decoder(
            self.config,
            rope=self.ropes[run],
            params=jax.tree.map(lambda x: np.asarray(x[run]), self.params),
            context_length=self.context_lengths[run],
        )


def fit_many(
    config: DecoderConfig,
    seeds: Sequence[int],
    encodings: Sequence[Encoding] | rope.Tables,
    batches: ManyBatches,
    training: TrainConfig,
    run_dir: AnyPath,
    *,
    length: int | None = None,
    examples: Batch | None = None,
    params: Params | None = None,
    evaluators: Iterable[Evaluator] = (),
    progress: Progress | None = None,
    meta: dict[str, JSON] | None = None,
) -> ManyRuns:
    """Train E runs, one for each (seed, encoding) pair, in one program; go on from what run_dir holds.

    A run that diverges keeps its last finite state, and ManyRuns.failed, the history and a warning say so;
    the others go on.

    Args:
        config: of every run's decoder.
        seeds: E of them, in 0 … 2^32 - 1, for the first parameters and for dropout. Equal seeds begin with
            equal parameters.
        encodings: E specs, or E tables, or the tables that stack_frequencies gives. They are for training;
            evaluators choose their own tables, for the runs in the same order.
        batches: step -> Batch of [B, T] arrays that every run sees, or of [E, B, T] arrays, one for each run.
            With `examples` it gives row numbers instead, i32[B] or i32[E, B]; -1 is no row.
        training: how long, and with which optimizer.
        run_dir: where checkpoints and metrics.jsonl go, and from where it goes on.
        length: positions that a RopeSpec's table is made for; by default those of a row.
        examples: a Batch of [rows, T] arrays, which stays on the devices.
        params: the first parameters [E, ...]; by default fresh ones.
        evaluators: called with the TrainState of all runs, see Evaluator.
        progress: see Progress.
        meta: JSON, kept with the checkpoints, that has to agree when the run goes on.

    Raises:
        ValueError: the counts differ; the runs need more memory than is free; the checkpoints in run_dir are
            another run's, or all damaged.
        FloatingPointError: every run has failed.
        Interrupted: see run_loop.
    """
    for seed in seeds:
        check_whole("a seed", seed, 0, SEEDS)
    if isinstance(encodings, rope.RopeSpec | rope.LayerSpecs):
        raise ValueError(f"expected one encoding for each run, got {encodings.title} alone; give a list.")
    if isinstance(encodings, rope.Frequencies | dict):
        encodings = unstack_frequencies(encodings)
    first = batches(0)
    columns = np.shape((first if examples is None else examples)["tokens"])[-1]
    positions = columns if length is None else length
    tables = [table(encoding, positions, config) for encoding in encodings]
    program = ManyRunsProgram(config, seeds, stack_frequencies(tables), batches, training, examples, params)
    ropes = tuple(spec_of(encoding) for encoding in encodings)
    made_by = identity(
        [rope.to_record(*of_run) for of_run in zip(tables, ropes, strict=True)],
        config,
        training,
        {
            "seeds": [int(seed) for seed in seeds],
            "data": arrays_digest((first, examples)),
            "first weights": None if params is None else weights_digest(params),
        },
        meta,
    )
    states, history = run_loop(
        program.advance,
        Fresh(program.like(), program.first),
        training.steps,
        run_dir,
        made_by,
        steps_per_call=training.steps_per_call,
        save_seconds=training.save_seconds,
        tokens_per_step=program.tokens_per_step,
        evaluators=evaluators,
        progress=progress,
    )
    done = np.asarray(states.step).tolist()
    return ManyRuns(
        config,
        jax.tree.map(np.asarray, states.params),
        history,
        ropes,
        tuple(context_length(encoding, columns, positions) for encoding in encodings),
        {run: step + 1 for run, step in enumerate(done) if step < training.steps},
    )
