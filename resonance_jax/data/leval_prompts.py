"""L-Eval's six closed-ended tasks, and how each asks: its system message and its exact prompts.

Every string here is the benchmark's own, misspellings included (An et al. 2023, the release's script for
Llama-2 chat models): a changed space changes the scores.
"""

from dataclasses import dataclass

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


def known_task(task: str) -> str:
    """The task itself; raises ValueError where L-Eval has none of that name."""
    if task not in TASKS:
        raise ValueError(f"L-Eval has no closed-ended task {task!r} here; known are {', '.join(TASKS)}.")
    return task


def prompt(task: str, document: str, instruction: str) -> str:
    """The whole prompt, without BOS. Braces in a document stay as they are.

    Args:
        task: one of TASKS.
        document: cut to its budget.
        instruction: the question.
    """
    kind = TASKS[known_task(task)]
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
    kind = TASKS[known_task(task)]
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
