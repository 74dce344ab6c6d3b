"""L-Eval's prediction files, `{task}.pred.jsonl`, as the benchmark and other software store them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from resonance_jax.data.content import lines
from resonance_jax.data.leval import TASKS
from resonance_jax.data.records import line_record
from resonance_jax.files import of_kind

FIELD = "_pred"
"""Ends the name of the field that holds a prediction; the model's name stands before it."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What one file holds: a model's predictions of one task, and the benchmark's answers.

    Attributes:
        task: one of TASKS.
        model: its name.
        said, answers: the model's predictions and the benchmark's answers, one per line.
        left_out: a sentence for each line that could not be read.
    """

    task: str
    model: str
    said: Sequence[str]
    answers: Sequence[str]
    left_out: Sequence[str]


def task_of(path: Path) -> str:
    """The task that a prediction file is named after. Raises ValueError when there is none of that name."""
    task = path.name.partition(".")[0]
    if task not in TASKS:
        raise ValueError(f"{path} is named after no closed-ended task of L-Eval: {', '.join(TASKS)}.")
    return task


def read_predictions(path: Path) -> Predictions:
    """The predictions in one file.

    A record has the benchmark's answer in `gt` and the prediction in the one field whose name is the model's
    and "_pred"; or they are `answer` and `prediction`, and the model is named after the file's folder.

    Args:
        path: a file TASK.pred.jsonl or TASK.jsonl.

    Raises:
        ValueError: the file is missing, cannot be read to its end, is named after no task, holds no
            prediction, or those of several models.
    """
    task = task_of(path)
    said: dict[str, list[tuple[str, str]]] = {}
    left_out: list[str] = []
    for line in lines(path):
        try:
            model, prediction, answer = _pair(line_record(line), path, line.where)
        except ValueError as error:
            left_out.append(str(error))
            continue
        said.setdefault(model, []).append((prediction, answer))
    if len(said) != 1:
        found = f"those of {', '.join(sorted(said))}" if said else "none"
        why = f" ({left_out[0]})" if left_out else ""
        raise ValueError(f"{path} must hold the predictions of one model, and holds {found}{why}.")
    ((model, pairs),) = said.items()
    return Predictions(task, model, [p for p, _ in pairs], [a for _, a in pairs], left_out)


def _pair(record: dict[str, object], path: Path, where: str) -> tuple[str, str, str]:
    """(model, prediction, answer) of a record."""
    fields = [name for name in record if name.endswith(FIELD)]
    if len(fields) > 1:
        raise ValueError(f"There are several predictions in {where}: {', '.join(fields)}.")
    field, answer = (fields[0], "gt") if fields else ("prediction", "answer")
    for name in (field, answer):
        if name not in record:
            raise ValueError(f"There is no {name!r} in {where}; expected gt and NAME{FIELD}.")
    text = lambda name: of_kind(record[name], str, f"The field {name!r} in {where}")
    model = field.removesuffix(FIELD) if fields else path.resolve().parent.name
    return model, text(field), text(answer)
