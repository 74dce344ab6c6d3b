"""What a progress line says while a job runs, and what it says in the end."""

import io
import time

import pytest

from resonance_jax.report import Progress, training_progress
from resonance_jax.report import progress as module


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made.monotonic)
    return made


def test_the_time_of_the_first_item_counts(clock):
    out = io.StringIO()
    progress = Progress("documents", stream=out, every=0.0)
    progress(0, 2)
    clock.now += 300
    progress(1, 2)
    clock.now += 200
    progress(2, 2)
    assert out.getvalue().splitlines() == [
        "documents 0/2  0:00 passed  ETA after the first",
        "documents 1/2  5:00 passed  ETA 5:00",
        "documents 2/2  took 8:20",
    ]


def test_a_single_item_took_what_it_took(clock):
    out = io.StringIO()
    progress = Progress("documents", stream=out)
    clock.now += 125
    progress(1, 1)
    assert out.getvalue() == "documents 1/1  took 2:05\n"


def test_compiling_is_said_and_not_counted_to_the_others(clock):
    out = io.StringIO()
    progress = training_progress("train")
    progress.stream, progress.every = out, 0.0
    assert progress._line(clock.now + 7) == "train  compiling  0:07 passed"
    clock.now += 60
    progress(21, 24, loss=2.0)
    clock.now += 4
    progress(22, 24, loss=2.0)
    clock.now += 4
    progress(23, 24, loss=1.5)
    assert out.getvalue().splitlines() == [
        "train 21/24  loss 2.000  1:00 passed",
        "train 22/24  loss 2.000  1:04 passed  ETA 0:08",
        "train 23/24  loss 1.500  1:08 passed  ETA 0:04",
    ]


def test_the_clock_goes_on_while_an_item_runs():
    out = io.StringIO()
    with Progress("cells", {"encoding": str}, stream=out, every=0.05) as progress:
        progress(0, 3, encoding="YaRN")
        time.sleep(0.4)
    lines = out.getvalue().splitlines()
    assert len(lines) > 3 and all(line.startswith("cells 0/3  YaRN  0:00 passed") for line in lines)
    time.sleep(0.15)
    assert out.getvalue().splitlines() == lines  # it ends with its block
