"""L-Eval's six closed-ended tasks: reading its jsonl files, cutting long documents, and its exact prompts.

Every string here is the benchmark's own, misspellings included (An et al. 2023, the release's script for
Llama-2 chat models): a changed space changes the scores. The texts of the benchmark are not part of this
package; `read` takes a folder that holds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resonance_jax.data.content import lines
from resonance_jax.data.records import line_record
from resonance_jax.files import found_at, half_surrogate, of_kind

MAX_NEW_TOKENS = 512
WORDS_DROPPED_EACH_ROUND = 250

_ONE_OPTION = (
    "Now you are given a very long document. Please follow the instruction based on this document. For "
    "multi-choice questions, there is only a sinlge correct option. Please only provide the letter "
    "corresponding to the answer (like A or B) when answering. For other questions, please directly give the "
    "concise and accurate answer. "
)


@dataclass(frozen=True)
class Task:
    """One task: its column in the papers' tables, the number of its questions, and how it is asked."""

    column: str
    questions: int
    system: str
    exam: bool  # the document and the question in the exam frame; otherwise the document, then the question


# In the order of the tables; the keys are the names of L-Eval's files.
TASKS = {
    "coursera": Task(
        "Coursera",
        172,
        "Now you are given a very long document. Please follow the instruction based on this document. For "
        "multi-choice questions, there could be a sinlge correct option or multiple correct options. Please "
        "only provide the letter corresponding to the answer (like A or AB) when answering. ",
        exam=True,
    ),
    "gsm100": Task(
        "GSM",
        100,
        "Given several question answer pairs, you need to follow a similar format to answer the last "
        "question. Make sure the response is end with The answer is _ . ",
        exam=False,
    ),
    "quality": Task("QuALITY", 202, _ONE_OPTION, exam=True),
    "tpo": Task("TOEFL", 269, _ONE_OPTION, exam=True),
    "codeU": Task(
        "CodeU",
        90,
        "Now you are given a code base consisting of a large amount of functions and the corresponding "
        "comments. In the end, I will call some functions defined in the code base. Please carefully read "
        "these codes and comments and answer the question.",
        exam=False,
    ),
    "sci_fi": Task(
        "SFiction",
        64,
        "Now you are given a scientific fiction. I will ask you some questions and the answer should be "
        '"True" or "False". Notice that you should answer the question based on the evidence in the document '
        "instead of your background knowledge.",
        exam=True,
    ),
}


@dataclass(frozen=True)
class Question:
    """One question about one document; `id` is "document:question", both counted from 0 in the file."""

    task: str
    id: str
    document: str
    instruction: str
    answer: str
    evaluation: str


@dataclass(frozen=True)
class Cut:
    """A document within its budget, with its tokens before and after."""

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
    path = Path(folder) / f"{_known(task)}.jsonl"
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

    k is 1,000, and only the 512 new tokens are taken off: the prompt and the question come on top.
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
    from_the_left = _known(task) == "codeU"
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


def prompt(task: str, document: str, instruction: str) -> str:
    """The whole prompt, without BOS. Braces in a document stay as they are.

    Args:
        task: one of TASKS.
        document: cut to its budget.
        instruction: the question.
    """
    kind = TASKS[_known(task)]
    frame = f"[INST]<<SYS>>\n{kind.system}\n<</SYS>>\n\n"
    if not kind.exam:
        return f"{frame}{document}\n\n{instruction}"
    return (
        f"{frame}Document is as follows. {document} \nQuestion: {instruction}.  Please directly give the "
        "answer without any additional output or explanation [/INST]\nAnswer:"
    )


def messages(task: str, document: str, instruction: str) -> list[dict[str, str]]:
    """The same prompt for a model with a chat template of its own; L-Eval writes LLaMA-2's into `prompt`.

    The system message is the task's; the user's is what stands between LLaMA-2's marks.

    Args:
        task, document, instruction: as for `prompt`.
    """
    kind = TASKS[_known(task)]
    asked = f"{document}\n\n{instruction}"
    if kind.exam:
        asked = (
            f"Document is as follows. {document} \nQuestion: {instruction}.  Please directly give the answer "
            "without any additional output or explanation"
        )
    return [{"role": "system", "content": kind.system}, {"role": "user", "content": asked}]


def fact_prompt(instruction: str) -> str:
    """SFiction's second prompt for a question: without the document, about the real world."""
    about_the_world = instruction.replace(
        "based on the world described in the document.",
        "based on the real-world knowledge and facts up until your last training",
    )
    return f"{about_the_world}Please directly answer without any additional output or explanation. \nAnswer:"


def with_fact(answer: str, fact: str) -> str:
    """SFiction's two answers as one prediction, in L-Eval's notation."""
    return f"{answer} [fact: {fact}]"


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


def _known(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"L-Eval has no closed-ended task {task!r} here; known are {', '.join(TASKS)}.")
    return task
