"""L-Eval's closed-ended tasks for any checkpoint, beside the paper's Table 2.

    python -m experiments.leval any --checkpoint PATH --data FOLDER --context 16k
    python -m experiments.leval 7b-short-resonance --checkpoint PATH --data FOLDER

Stop it at any time: the same command goes on with the next question. It exits with 3 when documents or
questions had to be left out, and says which. configs/leval.py has every setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.leval import PRESETS, Config
from resonance_jax.command import main, open_run
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import rope
    from resonance_jax.data.leval import Question
    from resonance_jax.evaluate.leval_asking import Answer
    from resonance_jax.report.leval import TaskResult

SHOWN = 5
"""How many of the questions that were left out are printed."""


def run(config: Config) -> int:
    """Ask what is missing, then print the table; 3 where something had to be left out."""
    _check(config)
    folder = open_run("leval", config)
    if not (folder / "leval.json").exists():
        _run(config, folder)
    result = read_json(folder / "leval.json")
    show(result)
    print(f"{folder}/table.csv  {folder}/predictions/")
    return 3 if result["left_out"] else 0


def _check(config: Config) -> None:
    """Raise ValueError before anything is made."""
    from resonance_jax.data import leval
    from resonance_jax.report.leval import PAPER

    for what, given in (("checkpoint", config.checkpoint), ("data", config.data)):
        if not given or not Path(given).is_dir():
            raise ValueError(f"--{what} must be a directory, got {given!r}.")
    for task in config.tasks:
        if task not in leval.TASKS:
            raise ValueError(f"unknown task {task!r}; expected one of {', '.join(leval.TASKS)}.")
    if not config.tasks or len(set(config.tasks)) < len(config.tasks):
        raise ValueError("--tasks must be at least one, each once.")
    if config.paper not in (None, *PAPER):
        raise ValueError(f"Table 2 has no row {config.paper!r}; expected one of {', '.join(PAPER)}.")
    leval.document_budget(config.context)


def label(config: Config) -> str:
    """The name of our row, and of the predictions' field."""
    return config.name or f"{Path(config.checkpoint).resolve().name}-{config.context}"


def _run(config: Config, folder: Path) -> None:
    """Ask every question that has no answer yet, task by task, and write down the scores."""
    import jax

    from resonance_jax import data, interop, report, rope
    from resonance_jax.command.checkpoints import scale_note
    from resonance_jax.data import leval
    from resonance_jax.evaluate.journal import Journal
    from resonance_jax.evaluate.leval_asking import Asker
    from resonance_jax.report.leval import task_result

    questions, left_out = {}, []
    for task in config.tasks:
        read, problems = leval.read(config.data, task)
        questions[task] = read[: config.limit]
        left_out += [{"task": task, "why": problem} for problem in problems]
    tokenizer = data.tokenizer(config.tokenizer or config.checkpoint)
    lm = interop.load_hf(config.checkpoint, dtype=config.dtype)
    length = config.length or 1024 * int(config.context.removesuffix("k"))
    asked = {"scale": config.scale, "train_length": config.train_length}
    spec = rope.restate_for_length(lm.rope, config.encoding, length, **asked)
    write_json(folder / "encodings.json", [rope.to_record(rope.frequencies(spec, length=length), spec)])
    asker = Asker(
        lm,
        tokenizer,
        spec,
        leval.document_budget(config.context),
        length,
        config.max_new_tokens,
        config.stop,
        config.batch_size,
    )
    print(f"device: {jax.devices()[0].device_kind}, {config.dtype}, {spec.title}, jax {jax.__version__}")
    if note := scale_note(spec, lm.rope, config.scale, length):
        print(f"{spec.title}: {note}")
    results = []
    for task in config.tasks:
        journal = Journal(folder / "predictions" / f"{task}.pred.jsonl")
        answered = {record["id"] for record in journal.records}
        todo = [question for question in questions[task] if question.id not in answered]
        if todo:
            print(f"\n{task}, first prompt:\n{shown_prompt(todo[0])}")
        skip = lambda question, why: left_out.append(
            {"task": question.task, "why": f"Question {question.id} was left out: {why}"}
        )
        with report.Progress(task) as progress:
            done = len(answered)
            for batch in asker.answers(asker.prompts(todo, skip)):
                journal.extend(record(answer, label(config)) for answer in batch)
                done += len(batch)
                progress(done, len(questions[task]))
        if journal.records:
            said = [answered[f"{label(config)}_pred"] for answered in journal.records]
            results.append(task_result(task, said, journal.records))
    if not results:
        raise ValueError(f"no question could be asked: {left_out[0]['why'] if left_out else 'no questions.'}")
    write_results(folder, config, results, left_out, spec)


def shown_prompt(question: Question) -> str:
    """A question's prompt for people: its document is replaced by its size."""
    from resonance_jax.data import leval

    size = f"<document of {len(question.document):,} characters>"
    return leval.prompt(question.task, size, question.instruction)


def record(answer: Answer, name: str) -> dict[str, str | int]:
    """A line of L-Eval's predictions, with fields of our own that say how the answer came about."""
    from resonance_jax.data import leval

    return {
        **leval.prediction_record(answer.question, answer.prediction, name),
        "id": answer.question.id,
        "ended": answer.ended,
        "prompt_tokens": answer.prompt_tokens,
        "document_tokens": answer.cut.tokens,
        "document_tokens_before": answer.cut.tokens_before,
    }


def write_results(
    folder: Path,
    config: Config,
    results: Sequence[TaskResult],
    left_out: Sequence[dict[str, str]],
    spec: rope.RopeSpec,
) -> None:
    """table.csv, and last leval.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report.leval import table

    rows = table(label(config), results, config.paper)
    write_text(folder / "table.csv", report.csv_text(rows))
    result = {
        "table": rows,
        "results": results,
        "left_out": left_out,
        "checkpoint": config.checkpoint,
        "data": config.data,
        "encoding": spec.to_dict(),
        "title": spec.title,
        "machine": report.machine(),
    }
    write_json(folder / "leval.json", result)


def show(result: dict) -> None:
    """Print the table and what was left out."""
    from resonance_jax.report.tables import print_table

    print(f"\n{result['checkpoint']} under {result['title']}, asked from {result['data']}")
    print_table(result["table"], "L-Eval, closed-ended tasks (%)")
    left_out = result["left_out"]
    for item in left_out[:SHOWN]:
        print(f"left out, {item['task']}: {item['why']}")
    if len(left_out) > SHOWN:
        print(f"… and {len(left_out) - SHOWN} more, all of them in leval.json.")


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
