"""Many runs in one program equal the same runs alone; a resumed run equals an uninterrupted one, bitwise."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from resonance_jax import rope, train
from resonance_jax.model import lora
from resonance_jax.train import many_program
from tests.fast_compile import FAST_COMPILE
from tests.train.small import CONFIG, ENCODINGS, OPTIMIZER, batches

ROOT = Path(__file__).resolve().parents[2]
SEEDS = [0, 0, 7]


def losses(runs: train.ManyRuns) -> np.ndarray:
    return np.asarray([record["loss"] for record in runs.history if "loss" in record])


def config(steps=12, **changes):
    return train.TrainConfig(steps, OPTIMIZER, steps_per_call=4, **changes)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return train.fit_many(CONFIG, SEEDS, ENCODINGS, batches, config(), folder), folder


def test_each_run_equals_itself_alone(together, tmp_path):
    runs, _ = together
    for e, (seed, freqs) in enumerate(zip(SEEDS, ENCODINGS, strict=True)):
        alone = train.fit_many(CONFIG, [seed], [freqs], batches, config(), tmp_path / str(e))
        np.testing.assert_allclose(losses(runs)[:, e], losses(alone)[:, 0], rtol=1e-5)
    # Seeds and encodings both matter, or the comparison would prove nothing.
    assert np.abs(np.diff(losses(runs)[-1])).min() > 1e-4


@pytest.mark.parametrize("mapped", ["vmap", "map"])
def test_one_compilation_serves_all_runs_however_they_are_mapped(together, tmp_path, mapped, monkeypatch):
    traces = []
    step = many_program.train_step
    monkeypatch.setattr(many_program, "train_step", lambda *arguments: traces.append(1) or step(*arguments))
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: jax.devices()[:1])
    runs = train.fit_many(CONFIG, SEEDS, ENCODINGS, batches, config(mapped=mapped), tmp_path)
    np.testing.assert_allclose(losses(runs), losses(together[0]), rtol=1e-5)
    assert len(traces) == 1


def test_batches_may_differ_by_run(tmp_path):
    shared = train.fit_many(CONFIG, SEEDS, ENCODINGS, batches, config(4), tmp_path / "a")
    each = lambda step: {"tokens": np.stack([batches(step + 100 * e)["tokens"] for e in range(3)])}
    own = train.fit_many(CONFIG, SEEDS, ENCODINGS, each, config(4), tmp_path / "b")
    np.testing.assert_allclose(losses(own)[:, 0], losses(shared)[:, 0], rtol=1e-5)
    assert np.abs(losses(own)[:, 1] - losses(shared)[:, 1]).min() > 1e-4


def test_a_finished_run_is_not_trained_again(together):
    runs, folder = together
    again = train.fit_many(CONFIG, SEEDS, ENCODINGS, batches, config(), folder)
    assert again.history == runs.history
    jax.tree.map(np.testing.assert_array_equal, again.params, runs.params)


def test_another_encoding_is_refused(together):
    _, folder = together
    with pytest.raises(ValueError, match="was trained under the encodings"):
        train.fit_many(CONFIG, SEEDS, ENCODINGS[::-1], batches, config(), folder)


def test_counts_and_sizes_must_agree(tmp_path):
    with pytest.raises(ValueError, match="2 seeds for 3 encodings"):
        train.fit_many(CONFIG, [0, 1], ENCODINGS, batches, config(), tmp_path)
    other = rope.frequencies(rope.RopeSpec(head_dim=8))
    with pytest.raises(ValueError, match=r"one rotary size, got \[8, 16\]"):
        train.stack_frequencies([ENCODINGS[0], other])


def test_when_every_run_fails_the_training_stops(tmp_path):
    wild = train.TrainConfig(8, train.OptimizerConfig(lr=1e30, schedule="constant", warmup=0))
    with pytest.raises(FloatingPointError, match="the loss is not finite within steps"):
        train.fit_many(CONFIG, SEEDS, ENCODINGS, batches, wild, tmp_path)


def poisoned(step):
    """Batches of three runs; from step 5 on those of run 1 ask for a token that is not in the vocabulary."""
    rows = np.stack([batches(step)["tokens"]] * 3)
    targets = rows.copy()
    targets[1] += 1000 * (step == 5)
    return {"tokens": rows, "targets": targets}


@pytest.mark.parametrize("mapped", ["map", pytest.param("vmap", marks=pytest.mark.full)])
def test_a_run_that_fails_stays_as_it_was_and_the_others_go_on(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: jax.devices()[:1])
    constant = dataclasses.replace(OPTIMIZER, schedule="constant", warmup=0.0)
    settings = lambda steps: train.TrainConfig(steps, constant, steps_per_call=4, mapped=mapped)
    fit = lambda data, steps, name, **options: train.fit_many(
        CONFIG, SEEDS, ENCODINGS, data, settings(steps), tmp_path / name, **options
    )
    well = fit(lambda step: {"tokens": poisoned(step)["tokens"]}, 12, "well")
    before = fit(poisoned, 5, "before")
    assert well.failed == before.failed == {}

    def stop(done, total, **figures):
        assert np.isfinite(figures["loss"])
        if done == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        pytest.warns(UserWarning, match="step 6 is not finite in run 1 of 3"),
        pytest.raises(train.Interrupted),
    ):
        fit(poisoned, 12, "sick", progress=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        sick = fit(poisoned, 12, "sick")
    assert sick.failed == {1: 6}
    assert [record for record in sick.history if "failed" in record] == [{"step": 6, "failed": [1]}]
    for name, leaf in lora.flatten(sick.params).items():
        for run in (0, 2):
            np.testing.assert_array_equal(leaf[run], lora.flatten(well.params)[name][run])
        np.testing.assert_array_equal(leaf[1], lora.flatten(before.params)[name][1])
    np.testing.assert_array_equal(losses(sick)[:, [0, 2]], losses(well)[:, [0, 2]])
    np.testing.assert_array_equal(np.isnan(losses(sick)[:, 1]), np.arange(12) >= 5)


def test_evaluators_run_when_they_should_and_the_next_steps_are_read_by_then(tmp_path):
    seen, read = [], []
    evaluator = train.Evaluator(5, lambda states: seen.append(max(read)) or {"runs": len(states.step)})
    noted = lambda step: read.append(step) or batches(step)
    runs = train.fit_many(CONFIG, SEEDS, ENCODINGS, noted, config(12), tmp_path, evaluators=[evaluator])
    assert seen == [8, 11, 11]  # counted from 0: of four steps a call, and none beyond the last
    records = [r for r in runs.history if "evaluation" in r]
    assert [r["step"] for r in records] == [5, 10, 12] and records[0]["evaluation"] == {"runs": 3}
    assert len(losses(runs)) == 12


CHILD = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
from resonance_jax import train
from tests.train.small import CONFIG, ENCODINGS, OPTIMIZER, batches
config = train.TrainConfig(40, OPTIMIZER, steps_per_call=2, save_seconds=0.0)
runs = train.fit_many(CONFIG, [0, 1], ENCODINGS[:2], batches, config, sys.argv[1])
import numpy as np
np.savez(sys.argv[2], *[np.asarray(x) for x in jax.tree.leaves(runs.params)])
"""


def child(folder: Path, result: Path) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(result)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def logged_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def killed_run(folder: Path, result: Path, kills: list[tuple[int, int]]) -> None:
    """Run to the end, sending each (step, signal) when the log has reached that step."""
    for step, number in kills:
        process = child(folder, result)
        while logged_steps(folder) < step and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        process.wait(timeout=60)
    assert child(folder, result).wait(timeout=120) == 0


def same_arrays(a: Path, b: Path) -> None:
    with np.load(a) as x, np.load(b) as y:
        assert x.files == y.files
        for name in x.files:
            np.testing.assert_array_equal(x[name], y[name])


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([(11, signal.SIGKILL)], id="killed"),
        pytest.param(
            [(s, signal.SIGTERM if s == 19 else signal.SIGKILL) for s in range(3, 39, 4)],
            id="nine-times",
            marks=pytest.mark.full,
        ),
    ],
)
def test_resumed_equals_uninterrupted_bitwise(tmp_path, kills):
    assert child(tmp_path / "whole", tmp_path / "whole.npz").wait(timeout=120) == 0
    killed_run(tmp_path / "killed", tmp_path / "killed.npz", kills)
    same_arrays(tmp_path / "whole.npz", tmp_path / "killed.npz")
    history = lambda name: [
        json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert history("whole") == history("killed")
