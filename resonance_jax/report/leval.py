"""L-Eval scores beside the paper's Table 2: same columns, same rounding, what a difference means."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from resonance_jax.data.leval import TASKS
from resonance_jax.evaluate import leval_scoring
from resonance_jax.evaluate.binomial import mean, wilson
from resonance_jax.evaluate.bootstrap import Interval

_COLUMNS = [task.column for task in TASKS.values()]


def _row(*cells: str) -> dict[str, str]:
    """A row of the table, by column."""
    return dict(zip([*_COLUMNS, "Avg."], cells, strict=True))


PAPER = {
    "7b-dynamic-ntk": _row("31.98", "32.00", "34.65", "59.11", "1.11", "36.72", "32.59"),
    "7b-ntk": _row("36.77", "3.00", "26.73", "34.20", "1.11", "50.78", "25.43"),
    "7b-long-yarn": _row("36.05", "19.00", "33.17", "50.56", "4.44", "56.25", "33.24"),
    "7b-long-resonance": _row("36.48", "22.00", "34.16", "55.76", "0.00", "57.03", "34.24"),
    "7b-short-yarn": _row("35.03", "24.00", "37.62", "57.62", "4.44", "60.94", "36.61"),
    "7b-short-resonance": _row("36.34", "27.00", "40.59", "56.51", "3.33", "61.72", "37.58"),
    "13b-dynamic-ntk": _row("29.22", "39.00", "40.59", "63.94", "1.11", "39.84", "35.62"),
    "13b-ntk": _row("40.26", "21.00", "38.12", "65.43", "1.11", "46.88", "35.47"),
    "13b-long-yarn": _row("38.08", "39.00", "43.07", "65.43", "0.00", "63.28", "41.48"),
    "13b-long-resonance": _row("38.66", "39.00", "43.56", "65.06", "1.11", "62.50", "41.65"),
    "13b-short-yarn": _row("41.72", "34.00", "41.09", "66.91", "2.22", "48.44", "39.06"),
    "13b-short-resonance": _row("41.86", "35.00", "42.57", "65.80", "5.56", "48.44", "39.87"),
}
"""Resonance RoPE, Table 2, as printed: one run each, no interval. long: fine-tuned at the target length;
short: at 4,096; the NTK rows not at all."""


class TaskResult(TypedDict):
    """A task's score with Wilson's 95 % interval over its questions, and how its answers came about.

    Attributes:
        task: its name in data.leval.
        score, low, high: in %.
        questions, questions_of_the_benchmark: how many were asked, and how many there are.
        documents_cut: how many questions were asked about a document that had to be cut.
        ended_by_length: how many answers ran out of tokens. Both are None where the predictions do not say.
    """

    task: str
    score: float
    low: float
    high: float
    questions: int
    questions_of_the_benchmark: int
    documents_cut: int | None
    ended_by_length: int | None


class Told(TypedDict):
    """How the answer to one question came about.

    Attributes:
        ended: why its generation ended, "eos", "stop" or "length".
        document_tokens, document_tokens_before: the document's tokens after and before it was cut.
    """

    ended: str
    document_tokens: int
    document_tokens_before: int


def task_result(
    task: str, predictions: Sequence[str], answers: Sequence[str], told: Sequence[Told] | None = None
) -> TaskResult:
    """The result of one task; the two halves of one of SFiction's questions count as one question.

    Args:
        task: its name in data.leval.
        predictions: the model's answers.
        answers: the benchmark's.
        told: how each prediction came about, where that is known.
    """
    score = leval_scoring.score(task, predictions, answers)
    interval = wilson(score / 100 * len(answers), len(answers))
    cut = None if told is None else sum(t["document_tokens"] < t["document_tokens_before"] for t in told)
    return {
        "task": task,
        "score": score,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "questions": len(answers),
        "questions_of_the_benchmark": TASKS[task].questions,
        "documents_cut": cut,
        "ended_by_length": None if told is None else sum(t["ended"] == "length" for t in told),
    }


def average(results: Sequence[TaskResult]) -> Interval | None:
    """The average of the six tasks in % with its interval; None unless all six are there."""
    if {result["task"] for result in results} != set(TASKS):
        return None
    return mean([Interval(r["score"], r["low"], r["high"]) for r in results])


def table(name: str, results: Sequence[TaskResult], paper: str | None = None) -> list[dict[str, str]]:
    """Our scores in the paper's columns and rounding, with intervals and counts.

    Args:
        name: of our row.
        results: of the tasks that were asked.
        paper: a row of PAPER, which then stands below with the difference, also counted in questions.
    """
    by_column = {TASKS[result["task"]].column: result for result in results}
    total = average(results)

    def line(label: str, cell: Callable[[TaskResult], str], last: str = "") -> dict[str, str]:
        cells = {column: cell(by_column[column]) if column in by_column else "" for column in _COLUMNS}
        return {"": label, **cells, "Avg.": last}

    span = lambda low, high: f"{low:.1f} … {high:.1f}"
    lines = [
        line(name, lambda r: f"{r['score']:.2f}", "" if total is None else f"{total.value:.2f}"),
        line(
            "95 % interval",
            lambda r: span(r["low"], r["high"]),
            "" if total is None else span(total.low, total.high),
        ),
    ]
    if paper is not None:
        printed = PAPER[paper]
        gap = lambda r: r["score"] - float(printed[TASKS[r["task"]].column])
        lines += [
            {"": f"paper, {paper}", **printed},
            line(
                "difference",
                lambda r: f"{gap(r):+.2f}",
                "" if total is None else f"{total.value - float(printed['Avg.']):+.2f}",
            ),
            line(
                "in questions of the paper's",
                lambda r: f"{gap(r) / 100 * TASKS[r['task']].questions:+.1f}",
            ),
        ]
    counts = line(
        "questions (of the benchmark's)", lambda r: f"{r['questions']} ({r['questions_of_the_benchmark']})"
    )
    told = [
        line("asked about a cut document", lambda r: _count(r["documents_cut"])),
        line("without an end: out of tokens", lambda r: _count(r["ended_by_length"])),
    ]
    return [*lines, counts, *(told if any(r["ended_by_length"] is not None for r in results) else [])]


def _count(number: int | None) -> str:
    return "" if number is None else str(number)
