"""PosGen: the paper's Table 1 and Figure 3, all encodings and seeds of a task in one compiled program.

    python -m experiments.posgen smoke|cpu|table1 [--protocol corrected|release|paper] [--encodings …]

Stop it at any time: the same command goes on where it was. configs/posgen.py has every preset and setting.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from configs.posgen import Config
from experiments.posgen.results import show, write_results
from experiments.posgen.study import Study
from resonance_jax.command import kept_result, open_run, use_every_core
from resonance_jax.files import write_json

if TYPE_CHECKING:
    from experiments.posgen.study import Evaluate
    from resonance_jax.evaluate.posgen_accuracy import SetScores
    from resonance_jax.model.decoder import Params


def run(config: Config) -> int:
    """Train and evaluate what is missing, then print the tables; or only plan it. 3: a training diverged."""
    use_every_core()
    if config.plan:
        plan(config)
        return 0
    study = Study(config)
    folder = open_run("posgen", config)
    write_json(folder / "encodings.json", study.records())
    kept = {task: kept_result(folder / task / "result.json", study.identity(task)) for task in config.tasks}
    if None in kept.values():
        print(study.about())
    results = {task: found or study.result(task, folder / task) for task, found in kept.items()}
    write_results(folder, config, results, study.wavelengths())
    show(folder)
    left_out = [sentence for result in results.values() for sentence in result["left_out"]]
    for sentence in left_out:
        print(sentence)
    return 3 if left_out else 0


def plan(config: Config) -> None:
    """Ten steps and an evaluation of the first task, timed; how long the whole would take."""
    study = Study(config)
    print(study.about())
    calls: list[float] = []
    evaluations: list[float] = []

    def timed(evaluate: Evaluate) -> Evaluate:
        def evaluation(params: Params) -> dict[str, SetScores]:
            for _ in range(2):  # the first one compiles
                began = time.monotonic()
                record = evaluate(params)
            evaluations.append(time.monotonic() - began)
            return record

        return evaluation

    training = dataclasses.replace(study.training, steps=12, steps_per_call=2, save_seconds=float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        tick = lambda *_, **__: calls.append(time.monotonic())
        study.fit(config.tasks[0], Path(folder), training, timed, tick)
    # The last call is followed by the evaluation.
    step = statistics.median(b - a for a, b in itertools.pairwise(calls[:-1])) / 2
    times = -(-config.epochs // config.eval_epochs)
    minutes = (step * study.training.steps + evaluations[0] * times) / 60
    runs, tasks = len(study.runs), len(config.tasks)
    print(
        f"a step of {runs} runs takes {1000 * step:.1f} ms ({runs / step:,.1f} run-steps/s), "
        f"an evaluation {evaluations[0]:.1f} s.\n"
        f"A task is {study.training.steps:,} steps and {times} evaluations, {minutes:.1f} minutes; "
        f"{tasks} tasks take {tasks * minutes:.0f} minutes, about {tasks * minutes / len(config.seeds):.0f} "
        "for each of the --seeds."
    )
