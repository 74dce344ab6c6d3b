"""L-Eval's rules for reading and scoring answers, one test each, and the arithmetic of Table 2."""

import csv
from pathlib import Path

import pytest

from resonance_jax.data import leval as tasks
from resonance_jax.evaluate import leval_scoring


def right(task, prediction, answer):
    """The score (0 ... 1) of one prediction."""
    return leval_scoring.score(task, [prediction], [answer]) / 100


# --- multiple choice

MULTIPLE_CHOICE = pytest.mark.parametrize("task", ["coursera", "quality", "tpo"])


@MULTIPLE_CHOICE
@pytest.mark.parametrize(
    ("answer", "expected"),
    [("B", "B"), ("(B) because C", "B"), ("ACD", "ACD"), ("A.C,D rest", "ACD"), ("none", "A"), ("", "A")],
)
def test_the_key_is_the_letters_of_the_first_word(task, answer, expected):
    assert leval_scoring.reference(task, answer) == expected


@MULTIPLE_CHOICE
@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_blank_prediction_is_none(task, blank):
    assert leval_scoring.extract(task, blank, "A") == "None"
    assert right(task, blank, "A") == 0


@MULTIPLE_CHOICE
@pytest.mark.parametrize("prediction", ["A", "D", "BC", "ABCD"])
def test_a_piece_of_abcd_is_taken_as_it_is(task, prediction):
    assert leval_scoring.extract(task, prediction, "A") == prediction


@pytest.mark.parametrize("task", ["quality", "tpo"])
@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("The option (C) is right, not B", "C"),
        ("Answer: D", "A"),
        ("Based on the text, D", "B"),
        ("(d) Doubtful", "D"),
        ("AC", "A"),
        ("no letter here", "A"),
    ],
)
def test_one_option_is_the_first_capital_a_to_d_of_any_word(task, prediction, expected):
    assert leval_scoring.extract(task, prediction, "A") == expected


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("CA because", "AC"),  # a leading run of two or more: sorted, the rest ignored
        ("BB D) too", "B"),  # ... and unique
        ("B, C. and D) but E.", "BCD"),  # a single leading letter joins those that stand alone
        ("The answer: B C\n", "BC"),
        ("Both B and C", "B"),  # a letter at the very end does not stand alone
        ("IBM BASIC. So D ", "CD"),  # but the last letter of a word does
        ("none. Question 2: B. C.", "A"),  # nothing after "Question" counts
        ("B. Question: C.", "B"),
        ("maybe: BAD", "BAD"),  # otherwise the first run of letters, neither sorted ...
        ("maybe:DAD", "DAD"),  # ... nor unique
        ("Answer:C", "A"),  # so a leading "Answer" is A here too
        ("nothing", "A"),  # and with no letter at all, A
        ("B", "B"),
    ],
)
def test_several_options(prediction, expected):
    assert leval_scoring.extract("coursera", prediction, "A") == expected


def test_part_of_the_right_options_is_a_quarter():
    assert right("coursera", "ABC", "ABC") == 1
    assert right("coursera", "AC because", "ABC") == 0.25
    assert right("coursera", "AD because", "ABC") == 0
    assert right("coursera", "ABCD", "ABC") == 0


def test_the_order_of_a_key_matters():
    assert right("coursera", "AB because", "BA") == 0.25


# --- GSM


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("6 x 7 = 42\nThe answer is 42\n\nThe answer is 7", "42"),  # the first one
        ("The answer is $1,234.50.", "1234"),  # digits up to the point; no comma, sign or currency
        ("The answer is -5%", "5"),
        ("The answer is .5", ""),
        ("The answer is unknown 7", ""),  # the next word, whatever it is
        ("the answer is 3", "3"),  # another spelling: the last token with a digit ...
        ("I count 4 and 12kg. Done\n\n99", "12"),  # ... before the first blank line
        ("one\n2 three", "2"),  # tokens end at spaces only: this one is "one\n2"
        ("no digit", ""),
        ("", ""),
    ],
)
def test_the_number_of_a_solution(prediction, expected):
    assert leval_scoring.extract("gsm100", prediction, "The answer is 1") == expected
    assert leval_scoring.reference("gsm100", prediction) == expected


def test_numbers_are_compared_as_numbers():
    assert right("gsm100", "The answer is 042", "The answer is 42") == 1
    assert right("gsm100", "The answer is 142", "The answer is 42") == 0
    assert right("gsm100", "no digit", "The answer is 42") == 0


# --- CodeU


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[6 15]", "[6 15]"),
        ("[1, 2,\n 3]", "[1 2 3]"),
        ("['a', 'b\\n']", "[a bn]"),
        ("3.0", "3"),
        ("3.05", "35"),  # ".0" goes wherever it is
        ("[[1] [2]]", "[[1][2]]"),
        ("[ [1 2] ]", "[[1 2]]"),
    ],
)
def test_printed_output_is_cleaned(answer, expected):
    assert leval_scoring.reference("codeU", answer) == expected


@pytest.mark.parametrize(
    ("prediction", "words", "expected"),
    [
        ("a b c d e 42", 1, "c d e 42"),  # the last words + 3 tokens
        (
            "the final output is 42 and no more than this",
            1,
            " 42 and no",
        ),  # or the first after the announcement
        ("the final output 1, the final output: 2", 1, ": 2"),  # the last announcement
        ("the value of x will be printed: 7", 1, " x : 7"),
        ("the result of the code would be 7", 1, "the result 7"),  # "of the code" goes before "the result of"
        ("this list is 7", 1, "th lt 7"),  # "is" goes inside words too
        ("a b c d 42 ", 1, "c d 42 "),  # a space at the end is a token
        ("[6, 15]", 2, "[6 15]"),
    ],
)
def test_the_output_in_a_prediction(prediction, words, expected):
    answer = " ".join(["1"] * words)
    assert leval_scoring.extract("codeU", prediction, answer) == expected


def test_code_is_right_if_the_key_is_anywhere_in_the_words():
    assert right("codeU", "so it prints 13", "3") == 1
    assert right("codeU", "so it prints [ 6, 15 ]", "[6 15]") == 1
    assert right("codeU", "3 is what one would get here", "3") == 0  # not among the last four tokens


# --- SFiction


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("True [fact: False]", ("true", "false")),
        ("FALSE. [fact: It is true.</s>]", ("false", "true")),
        ("untrue, so false [fact: x]", ("true", "<error>")),  # "true" inside a word
        ("I cannot say [fact: truefalse]", ("<error>", "true")),
        ("[fact: tru]", ("<error>", "<error>")),
        ("True [fact: true", ("true", "<error>")),  # the last character is cut, whatever it is
        ("True", ("true", "<error>")),
        ("True [fact: false [fact: true]", ("true", "false")),
    ],
)
def test_labels_of_loyalty_and_fact(prediction, expected):
    assert leval_scoring.extract("sci_fi", prediction, "") == expected


def test_loyalty_and_fact_count_half_each():
    assert leval_scoring.reference("sci_fi", "True [fact: False]") == ("true", "false")
    assert right("sci_fi", "true [fact: false]", "True [fact: False]") == 1
    assert right("sci_fi", "true [fact: true]", "True [fact: False]") == 0.5
    assert right("sci_fi", "? [fact: ?]", "True [fact: False]") == 0


# --- matching


@pytest.mark.parametrize(
    ("extracted", "expected", "credit"),
    [
        ("A.", "A", 1),  # punctuation goes
        ("a A", "A", 1),  # the articles go, as whole words ...
        ("The A", "A", 0),  # ... in lower case only
        ("A B", "AB", 0),  # a space is a character that the key lacks
        ("", "AB", 0.25),  # and an empty prediction lacks nothing
        ("a", "A", 0.25),
        ("b", "B", 0),
        ("7.00", "7", 1),
        ("1e2", "100", 1),
        ("17", "7", 0),  # two numbers must be equal
        ("17 apples", "7", 1),  # but a number may hide in a text
        ("The ANSWER  is", "answeris", 1),
        ("long line\nanother\nk ey", "key", 1),  # in any line
        ("abc", "a", 0),  # an article as key leaves nothing: only ...
        ("", "the", 1),  # ... an empty prediction equals it
    ],
)
def test_matching(extracted, expected, credit):
    assert leval_scoring.match(extracted, expected) == credit


def test_the_slow_tokenizers_space_is_seen_by_some_rules():
    stored = " AC [/INST] Answer: D."
    assert leval_scoring.without_slow_space(stored) == stored[1:]
    assert leval_scoring.without_slow_space("A  ") == "A  "
    assert right("coursera", stored, "AC") != right("coursera", stored[1:], "AC") == 1


def test_the_end_mark_is_deleted():
    assert leval_scoring.completion(" B</s></s>") == " B"


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="1 predictions for 2 answers"):
        leval_scoring.score("tpo", ["A"], ["A", "B"])
    with pytest.raises(ValueError, match="0 predictions for 0 answers"):
        leval_scoring.score("tpo", [], [])
    with pytest.raises(ValueError, match="no closed-ended task 'topic'"):
        leval_scoring.score("topic", ["A"], ["A"])
    with pytest.raises(ValueError, match="all six tasks; missing: gsm100"):
        leval_scoring.average({task: 0.0 for task in tasks.TASKS if task != "gsm100"})


# --- Table 2


def table_2():
    with (Path(__file__).parents[1] / "goldens" / "paper_table2.csv").open() as file:
        return list(csv.DictReader(file))


COLUMNS = ("coursera", "gsm", "quality", "toefl", "codeu", "sfiction")

# task -> (an answer, what is said by a right, a quarter-right and a wrong prediction)
SAID = {
    "coursera": ("ACD", "ACD", "AD, I think", "B"),
    "gsm100": ("So 7 are left.\nThe answer is 7", "3 + 4 = 7. The answer is 7.", None, "The answer is 8"),
    "quality": ("(C) the sea", "(C) the sea", None, "I do not know, but D"),
    "tpo": ("D", "D.", None, "Answer: D"),
    "codeU": ("[6 15]", "hence the final output is [6, 15].", None, "it prints 6 and 15"),
}


def predictions(task, correct):
    """(predictions, answers) of the task's real size with so many right, in quarters for Coursera."""
    if task == "sci_fi":  # `correct` counts halves
        both, one = divmod(int(correct), 2)
        said = ["False. [fact: True]"] * both + ["False. [fact: no idea]"] * one
        said += ["true [fact: false]"] * (tasks.TASKS[task].questions - len(said))
        return said, ["False [fact: True]"] * len(said)
    answer, right, quarter, wrong = SAID[task]
    said = [right] * int(correct) + [quarter] * round(4 * (correct % 1))
    said += [wrong] * (tasks.TASKS[task].questions - len(said))
    return said, [answer] * len(said)


@pytest.mark.parametrize(
    "row", table_2(), ids=lambda row: f"{row['model']} {row['method']} {row['ft_seq_len']}"
)
def test_every_cell_and_average_of_table_2(row):
    counts = dict(zip(tasks.TASKS, (key for key in row if key.startswith("n_")), strict=True))
    scores = {
        task: leval_scoring.score(task, *predictions(task, float(row[count])))
        for task, count in counts.items()
    }
    printed = dict(
        zip((kind.column for kind in tasks.TASKS.values()), (row[c] for c in COLUMNS), strict=True)
    )
    assert leval_scoring.table_row(scores) == {**printed, "Avg.": row["avg_printed"]}


def test_table_2_has_twelve_rows():
    assert len(table_2()) == 12
