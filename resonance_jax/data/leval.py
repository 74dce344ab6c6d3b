"""L-Eval's questions and documents: its jsonl files read, its long documents cut as its own script cuts them.

How a question is asked is in data.leval_prompts, whose names are offered here too. The texts of the benchmark
are not part of this package; `read` takes a folder that holds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resonance_jax.data.content import lines
from resonance_jax.data.leval_prompts import TASKS, Task, fact_prompt, known_task, messages, prompt, with_fact
from resonance_jax.data.records import line_record
from resonance_jax.files import found_at, half_surrogate, of_kind

MAX_NEW_TOKENS = 512
WORDS_DROPPED_EACH_ROUND = 250

__all__ = [
    "MAX_NEW_TOKENS",
    "TASKS",
    "WORDS_DROPPED_EACH_ROUND",
    "Cut",
    "Question",
    "Task",
    "cut",
    "document_budget",
    "fact_prompt",
    "messages",
    "prediction_record",
    "prompt",
    "read",
    "with_fact",
]


@dataclass(frozen=True)
class Question:
    """One question about one document.

    Attributes:
        task: one of TASKS.
        id: "document:question", both counted from 0 in the file.
        document, instruction: the texts that the model reads.
        answer: the benchmark's.
        evaluation: how the benchmark scores it, as its file says.
    """

    task: str
    id: str
    document: str
    instruction: str
    answer: str
    evaluation: str


@dataclass(frozen=True)
class Cut:
    """A document within its budget, and how many tokens it had before and has now."""

    text: str
    tokens_before: int
    tokens: int


def read(folder: str | Path, task: str) -> tuple[list[Question], list[str]]:
    """The questions in `folder`/`task`.jsonl, and a sentence for each document or question left out.

    Args:
        folder: holds L-Eval's files. Fields of a record: `input` (the document), `instructions` and `outputs`
            (as many), `evaluation`.
        task: one of TASKS.

    Raises:
        ValueError: the task is unknown, or its file is missing or cannot be read to its end.
    """
    path = Path(folder) / f"{known_task(task)}.jsonl"
    if found_at(path) == "missing":
        raise ValueError(f"There is no {path}: expected L-Eval's file of the task {task}.")
    questions, problems = [], []
    for number, line in enumerate(lines(path)):
        try:
            document = _document(line_record(line), line.where)
        except ValueError as error:
            problems.append(str(error))
            continue
        for index, (instruction, answer) in enumerate(document.asked):
            where = f"Question {index} in {line.where}"
            if not instruction.strip() or not answer.strip():
                problems.append(f"{where} is empty or has an empty answer.")
            elif half_surrogate(instruction + "\n" + answer) is not None:
                problems.append(f"{where} or its answer holds half a surrogate pair.")
            else:
                id = f"{number}:{index}"
                questions.append(Question(task, id, document.text, instruction, answer, document.evaluation))
    return questions, problems


@dataclass(frozen=True)
class _Record:
    """A record of a file: a document, and (instruction, answer) of each question about it."""

    text: str
    asked: list[tuple[str, str]]
    evaluation: str


def _document(record: dict[str, object], where: str) -> _Record:
    field = lambda name: f"The field {name!r} in {where}"
    text = of_kind(record.get("input"), str, field("input"))
    if not text.strip():
        raise ValueError(f"The document in {where} is empty.")
    if half_surrogate(text) is not None:
        raise ValueError(f"The document in {where} holds half a surrogate pair.")
    instructions, outputs = (
        [
            of_kind(entry, str, f"An entry of {name!r} in {where}")
            for entry in of_kind(record.get(name), list, field(name))
        ]
        for name in ("instructions", "outputs")
    )
    if len(instructions) != len(outputs):
        raise ValueError(f"There are {len(instructions)} instructions but {len(outputs)} outputs in {where}.")
    evaluation = of_kind(record.get("evaluation", "exam"), str, field("evaluation"))
    return _Record(text, list(zip(instructions, outputs, strict=True)), evaluation)


def document_budget(context: str) -> int:
    """Tokens that a document may have in a context of "32k" (31,488), "16k" (15,488) or "4k" (3,488).

    k is 1,000, and only the 512 new tokens are taken off: the prompt and the question come on top. Raises
    ValueError for another spelling, and for a context that the new tokens fill.
    """
    number = context.removesuffix("k")
    if number == context or not number.isdigit() or 1000 * int(number) <= MAX_NEW_TOKENS:
        raise ValueError(f"An L-Eval context is written like '16k' or '32k', not {context!r}.")
    return 1000 * int(number) - MAX_NEW_TOKENS


def cut(document: str, task: str, budget: int, count_tokens: Callable[[str], int]) -> Cut:
    """The document, cut as L-Eval cuts it until it has at most `budget` tokens.

    Each round keeps the first (CodeU: the last) budget - 250 * round *words*, split at single spaces, so a
    document usually ends up well below the budget.

    Args:
        document: its text.
        task: one of TASKS.
        budget: in tokens, as `document_budget` has it.
        count_tokens: the tokens of a text, BOS included.

    Raises:
        ValueError: dropping words cannot do it (a document almost without spaces).
    """
    from_the_left = known_task(task) == "codeU"
    before = tokens = count_tokens(document)
    keep = budget
    while tokens > budget:
        if keep <= 0:
            raise ValueError(
                f"A document of {before} tokens cannot be cut to {budget}: it has too few spaces."
            )
        words = document.split(" ")
        document = " ".join(words[-keep:] if from_the_left else words[:keep])
        tokens = count_tokens(document)
        keep -= WORDS_DROPPED_EACH_ROUND
    return Cut(document, before, tokens)


def prediction_record(question: Question, prediction: str, model: str) -> dict[str, str]:
    """One line of L-Eval's `{task}.pred.jsonl`, as its own scorer reads it; the document is left out.

    Args:
        question: what was asked.
        prediction: what the model answered.
        model: names it; a part of the key of the prediction.
    """
    return {
        "query": question.instruction,
        "gt": question.answer,
        "prompt": prompt(question.task, "<long document>", question.instruction),
        f"{model}_pred": prediction,
        "evaluation": question.evaluation,
    }
