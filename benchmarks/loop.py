"""What the training loop costs beside its steps: loop time over bare step time, as it was and as it is.

    .venv/bin/python benchmarks/loop.py [--rounds 7] [--steps 48]

PosGen's decoder at width 64, batches of 32 x 64 tokens, dropout 0.1, one run on one device (`train.fit`) and
two at once (`train.fit_many`). Bare: the compiled step again and again on one batch that lies on the device,
waited for once at the end. The loop: everything that a training does after its first call (batches read and
placed, figures fetched, checked and written, progress told), from one call of `progress` to the last. "as it
was": the loop of 0.1.0, which reads a batch, runs its step, waits for its figures, and only then reads the
next. All three train from the same weights on the same batches, and their losses must be equal to the bit.

Ratios are medians over rounds, in which the three take turns; compilation is apart. Writes
results/speed/loop_<processor>.json; exits with 1 when a step takes more than 50 ms, the losses differ, or the
loop as it is takes more than 1.05 of the bare steps. About five minutes on two cores.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from beside import THREADS, machine, write

from resonance_jax import model, rope, train
from resonance_jax.data import posgen
from resonance_jax.train.batches import place_batch, reader
from resonance_jax.train.loop import Fresh, run_loop
from resonance_jax.train.many_program import ManyRunsProgram
from resonance_jax.train.run_program import RunProgram

ROWS, LENGTH, STEPS_PER_CALL, RUNS = 32, 64, 8, 2
MOST_MILLISECONDS, MOST = 50.0, 1.05
OPTIMIZER = train.OptimizerConfig(lr=2e-4, beta2=0.999, schedule="onecycle", warmup=0.1)
CONFIG = model.PRESETS["t5-small-decoder"].replace(
    d_model=64, n_heads=2, n_kv_heads=2, head_dim=32, d_ff=256, head_scale=64**-0.5, dropout=0.1
)
FREQS = rope.frequencies(rope.RopeSpec(head_dim=CONFIG.head_dim))


class Clock:
    """Seconds a step between the first and the last call of `progress`."""

    def __init__(self):
        self.seen = []

    def __call__(self, done, total, **figures):
        self.seen.append((done, time.perf_counter()))

    def seconds(self):
        (first, began), (last, ended) = self.seen[0], self.seen[-1]
        return (ended - began) / (last - first)


def in_a_folder(loop):
    """(seconds a step, losses) of a loop(folder, clock) that gives its history."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        history = loop(Path(folder), clock)
    return clock.seconds(), np.asarray([record["loss"] for record in history])


def bare(step, state, steps):
    """(seconds a step, None) of step(state) -> state, dispatched `steps` times and waited for once."""
    state = jax.block_until_ready(step(state))
    began = time.perf_counter()
    for _ in range(steps):
        state = step(state)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / steps, None


class One:
    """train.fit."""

    def __init__(self, data, settings):
        order = train.Rows(len(data["tokens"]), ROWS, [0])
        self.batches = lambda step: {name: x[order[step][0]] for name, x in data.items()}
        self.settings = settings
        self.lm = model.Decoder(CONFIG, jax.random.key(0))
        self.program = RunProgram(CONFIG, settings)
        self.read = reader(self.batches)

    def first(self):
        return self.program.first_state(self.program.place(self.lm.params, 0)[0], 0)

    def bare(self):
        batch = place_batch(functools.partial(self.read, 0), ROWS, LENGTH, None)
        step = lambda state: self.program.step(state, {}, batch, FREQS)[0]
        return bare(step, self.first(), self.settings.steps)

    def loop(self):
        fit = lambda folder, clock: train.fit(
            self.lm, self.batches, FREQS, self.settings, folder, progress=clock
        )
        return in_a_folder(lambda folder, clock: fit(folder, clock).history)

    def as_it_was(self):
        def advance(state, start, count):
            logged = []
            for step in range(start, start + count):
                batch = place_batch(functools.partial(self.read, step), ROWS, LENGTH, None)
                state, metrics = self.program.step(state, {}, batch, FREQS)
                logged.append({name: np.asarray(value) for name, value in metrics.items()})
                if not np.isfinite(logged[-1]["loss"]):
                    raise FloatingPointError(f"step {step}")
            return state, {name: np.stack([each[name] for each in logged]) for name in logged[0]}

        return in_a_folder(driven(advance, Fresh(self.program.like, self.first), self.settings))


class Many:
    """train.fit_many."""

    def __init__(self, data, settings):
        order = train.Rows(len(data["tokens"]), ROWS, range(RUNS))
        self.batches, self.data, self.settings = order.__getitem__, data, settings
        freqs = train.stack_frequencies([FREQS] * RUNS)
        self.program = ManyRunsProgram(CONFIG, range(RUNS), freqs, self.batches, settings, data)

    def bare(self):
        arguments = self.program._arguments(0, STEPS_PER_CALL)
        step = lambda state: self.program._run(state, *arguments)[0]
        seconds, _ = bare(step, self.program.first(), self.settings.steps // STEPS_PER_CALL)
        return seconds / STEPS_PER_CALL, None

    def loop(self):
        fit = lambda folder, clock: train.fit_many(
            CONFIG,
            range(RUNS),
            [FREQS] * RUNS,
            self.batches,
            self.settings,
            folder,
            examples=self.data,
            progress=clock,
        )
        return in_a_folder(lambda folder, clock: fit(folder, clock).history)

    def as_it_was(self):
        freqs, _, examples, *_ = self.program._arguments(0, 1)

        def advance(state, start, count):
            rows = np.stack([self.batches(start + min(i, count - 1)) for i in range(STEPS_PER_CALL)])
            state, metrics = self.program._run(state, freqs, rows, examples, np.int32(start), np.int32(count))
            return state, {name: np.asarray(value)[:count] for name, value in metrics.items()}

        return in_a_folder(driven(advance, Fresh(self.program.like(), self.program.first), self.settings))


def driven(advance, fresh, settings):
    """A loop(folder, clock) around another advance."""
    return lambda folder, clock: run_loop(
        advance,
        fresh,
        settings.steps,
        folder,
        {"encodings": [], "settings": {}},
        steps_per_call=settings.steps_per_call,
        save_seconds=settings.save_seconds,
        tokens_per_step=ROWS * LENGTH,
        progress=clock,
    )[1]


def measured(contestant, rounds):
    """Seconds a step of the three, round by round; and whether both loops had the same losses."""
    seconds, equal = {"bare": [], "as it was": [], "as it is": []}, True
    ways = dict(zip(seconds, (contestant.bare, contestant.as_it_was, contestant.loop), strict=True))
    for number in range(rounds + 1):
        losses = {}
        for name, run in ways.items():
            took, losses[name] = run()
            if number:  # the first round warms up
                seconds[name].append(took)
        equal = equal and np.array_equal(losses["as it was"], losses["as it is"])
    return seconds, equal


def row(name, seconds, equal):
    over = lambda way: statistics.median(a / b for a, b in zip(seconds[way], seconds["bare"], strict=True))
    return {
        "trained by": name,
        "milliseconds a step": {way: 1e3 * statistics.median(all) for way, all in seconds.items()},
        "loop over bare, as it was": over("as it was"),
        "loop over bare": over("as it is"),
        "best": {"ratio": over("as it is"), "opponent": "bare steps"},
        "losses equal to the bit": equal,
        "target": MOST,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=48)
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", THREADS)
    split = posgen.split("corrected", "recursive", "train", LENGTH)
    data = {"tokens": np.asarray(split.tokens)[:, :-1], "targets": np.asarray(split.labels)}
    settings = train.TrainConfig(
        asked.steps, OPTIMIZER, micro=16, steps_per_call=STEPS_PER_CALL, save_seconds=float("inf")
    )
    result = {**machine(), "rounds": asked.rounds, "steps": asked.steps, "steps a call": STEPS_PER_CALL}
    result["loops"] = []
    for name, kind in (("fit, one run", One), (f"fit_many, {RUNS} runs", Many)):
        one = row(name, *measured(kind(data, settings), asked.rounds))
        result["loops"].append(one)
        print(one, flush=True)
    write("loop", result)
    good = all(
        one["losses equal to the bit"]
        and one["loop over bare"] <= MOST
        and one["milliseconds a step"]["bare"] <= MOST_MILLISECONDS
        for one in result["loops"]
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
