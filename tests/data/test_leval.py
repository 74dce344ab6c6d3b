"""L-Eval's files, prompts and cuts. All texts are our own: the benchmark's data is not in this repository."""

import hashlib
import json
import re

import pytest

from resonance_jax.data import leval


@pytest.fixture
def write(tmp_path):
    def write(task, *records):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def record(**changes):
    return {
        "instructions": ["Q1?", "Q2?"],
        "outputs": ["A", "BD"],
        "input": "A {text}.",
        "source": "ours",
    } | changes


def test_the_six_tasks_in_the_papers_order():
    assert [task.column for task in leval.TASKS.values()] == [
        "Coursera",
        "GSM",
        "QuALITY",
        "TOEFL",
        "CodeU",
        "SFiction",
    ]
    assert [task.questions for task in leval.TASKS.values()] == [172, 100, 202, 269, 90, 64]


def test_questions_of_a_file(write):
    folder = write("tpo", record(evaluation="exam"), "", record(input="Second.", outputs=["C", "D"]))
    questions, problems = leval.read(folder, "tpo")
    assert not problems and [question.id for question in questions] == ["0:0", "0:1", "1:0", "1:1"]
    assert questions[1] == leval.Question("tpo", "0:1", "A {text}.", "Q2?", "BD", "exam")
    assert questions[2].document == "Second."


def test_what_cannot_be_used_is_said_and_the_rest_is_read(write):
    folder = write(
        "coursera",
        record(),
        {"instructions": ["Q?"], "outputs": ["A"]},
        record(input=" "),
        record(outputs=["A"]),
        record(outputs=["A", None]),
        "{broken",
        record(outputs=["A", " "]),
        record(instructions=["half \ud800?", "Whole?"]),
        record(input="half \udfff"),
        record(outputs=["A", "\udc00"]),
        record(evaluation=3),
        "[" * 100_000,
        '{"input": 1' + "0" * 5000 + "}",
    )
    questions, problems = leval.read(folder, "coursera")
    assert [question.id for question in questions] == ["0:0", "0:1", "6:0", "7:1", "9:0"]
    expected = [
        "'input' in line 2",
        "document in line 3 .* is empty",
        "2 instructions but 1 outputs in line 4",
        "'outputs' in line 5 .* is null, expected a string",
        "line 6 .* is not JSON",
        "Question 1 in line 7 .* is empty",
        "Question 0 in line 8 .* half a surrogate pair",
        "document in line 9 .* half a surrogate pair",
        "Question 1 in line 10 .* half a surrogate pair",
        "'evaluation' in line 11 .* is a number, expected a string",
        "line 12 .* is nested too deeply",
        "line 13 .* thousands of digits",
    ]
    assert len(problems) == len(expected)
    for problem, pattern in zip(problems, expected, strict=True):
        assert re.search(pattern, problem) and "\n" not in problem


def test_an_unknown_task_or_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no closed-ended task 'gsm' here; known are coursera, gsm100"):
        leval.read(tmp_path, "gsm")
    with pytest.raises(ValueError, match=r"There is no .*codeU\.jsonl"):
        leval.read(tmp_path, "codeU")


# --- cutting


def count_words(text):
    """A tokenizer that counts BOS and every word."""
    return 1 + len(text.split(" "))


def test_budgets():
    assert [leval.document_budget(context) for context in ("4k", "16k", "32k")] == [3488, 15488, 31488]
    for context in ("32", "0k", "-1k", "k", "32K"):
        with pytest.raises(ValueError, match="written like '16k'"):
            leval.document_budget(context)


def test_a_document_within_the_budget_stays():
    assert leval.cut("a b  c", "tpo", 5, count_words) == leval.Cut("a b  c", 5, 5)


@pytest.mark.parametrize("task", ["coursera", "gsm100", "quality", "tpo", "sci_fi"])
def test_the_head_is_kept(task):
    # Round 1 keeps 1,000 words, 1,001 tokens: one too many, so round 2 keeps 750.
    words = [str(i) for i in range(3000)]
    assert leval.cut(" ".join(words), task, 1000, count_words) == leval.Cut(" ".join(words[:750]), 3001, 751)


def test_of_code_the_tail_is_kept():
    words = [str(i) for i in range(3000)]
    assert leval.cut(" ".join(words), "codeU", 1000, count_words) == leval.Cut(
        " ".join(words[-750:]), 3001, 751
    )


def test_words_are_counted_not_tokens():
    # Three tokens a word: 1,000 words, then 750, 500, 250 (751 tokens).
    three = lambda text: 1 + 3 * len(text.split(" "))
    assert leval.cut(" ".join("x" * 2000), "tpo", 1000, three) == leval.Cut(" ".join("x" * 250), 6001, 751)


def test_a_document_without_spaces_cannot_be_cut():
    with pytest.raises(ValueError, match="5000 tokens cannot be cut to 1000: it has too few spaces"):
        leval.cut("x" * 5000, "tpo", 1000, len)


# --- prompts


def test_an_exam_prompt_to_the_letter():
    assert leval.prompt("sci_fi", "{D}", "I?") == (
        "[INST]<<SYS>>\n"
        "Now you are given a scientific fiction. I will ask you some questions and the answer should be "
        '"True" or "False". Notice that you should answer the question based on the evidence in the document '
        "instead of your background knowledge.\n"
        "<</SYS>>\n\n"
        "Document is as follows. {D} \n"
        "Question: I?.  Please directly give the answer without any additional output or explanation "
        "[/INST]\nAnswer:"
    )


def test_gsm_and_code_prompts_end_with_the_question():
    for task in ("gsm100", "codeU"):
        made = leval.prompt(task, "{D}", "Question: I\nLet's think step by step\n")
        assert made.endswith("\n<</SYS>>\n\n{D}\n\nQuestion: I\nLet's think step by step\n")
        assert "[/INST]" not in made


# SHA-1 of the system prompts as the benchmark's release has them.
SYSTEMS = {
    "coursera": "1fe2e4daeeb6f18eff4177f13712a5b51041529f",
    "gsm100": "4cf1d2d8b447750ea6e180bec61fa7807ed51129",
    "quality": "7c522876b998461c66a44c26e1e74dc7e6b7d9f6",
    "tpo": "7c522876b998461c66a44c26e1e74dc7e6b7d9f6",
    "codeU": "a043d300cb32eafe6e86ea6ca5fc45c148a45322",
    "sci_fi": "0c53c536ffdbf0bac35696dfcc20c2ea36520671",
}


@pytest.mark.parametrize("task", leval.TASKS)
def test_system_prompts_are_verbatim(task):
    assert hashlib.sha1(leval.TASKS[task].system.encode()).hexdigest() == SYSTEMS[task]


def test_the_second_question_of_sfiction():
    asked = "Is it so, based on the world described in the document. True or False? "
    assert leval.fact_prompt(asked) == (
        "Is it so, based on the real-world knowledge and facts up until your last training True or False? "
        "Please directly answer without any additional output or explanation. \nAnswer:"
    )
    assert leval.with_fact(" True", "False") == " True [fact: False]"


def test_a_prediction_in_the_benchmarks_layout(write):
    (question, _), _ = leval.read(write("quality", record()), "quality")
    line = leval.prediction_record(question, "B", "ours-7b-16k")
    assert line.keys() == {"query", "gt", "prompt", "ours-7b-16k_pred", "evaluation"}
    assert (line["query"], line["gt"], line["ours-7b-16k_pred"], line["evaluation"]) == (
        "Q1?",
        "A",
        "B",
        "exam",
    )
    assert "<long document>" in line["prompt"] and "A {text}." not in line["prompt"]
