"""How answers to L-Eval's questions are scored: what a model's text says, and how right that is.

Every rule is that of the benchmark's own scorer, the surprising ones too: published scores contain them.
evaluate.leval_asking generates the answers.
"""

import re
import string
from collections.abc import Mapping, Sequence

from resonance_jax.data.leval import TASKS

MULTIPLE_CHOICE = ("coursera", "quality", "tpo")
# In this order, anywhere: "is" is also cut out of "this" and "list".
_CODE_PHRASES = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")


def completion(text: str) -> str:
    """A model's continuation as it is stored: without "</s>"."""
    return text.replace("</s>", "")


def without_slow_space(prediction: str) -> str:
    """A stored prediction without the space that Hugging Face's slow LLaMA tokenizer puts in front of text.

    Predictions that were decoded by it have the space, those of our tokenizers do not, and some rules see it:
    "B" alone is an option, " B" a text. Published scores are of the predictions as they are stored.
    """
    return prediction.removeprefix(" ")


def reference(task: str, answer: str) -> str | tuple[str, str]:
    """The answer key that an answer of the benchmark stands for; SFiction: (loyalty, fact)."""
    if task in MULTIPLE_CHOICE:
        return _letters(answer.split()[0]) or "A" if answer.split() else "A"
    if task == "gsm100":
        return _number(answer)
    if task == "codeU":
        return _code(answer)
    if task == "sci_fi":
        loyalty, fact = _loyalty_and_fact(answer)
        return loyalty.strip(), fact.strip()
    raise ValueError(f"L-Eval has no closed-ended task {task!r} here; known are {', '.join(TASKS)}.")


def extract(task: str, prediction: str, answer: str) -> str | tuple[str, str]:
    """What a prediction says, to be compared with `reference(task, answer)`.

    answer: the benchmark's answer; only CodeU needs it, for its length.
    """
    if task in MULTIPLE_CHOICE:
        return _options(prediction, several=task == "coursera")
    if task == "codeU":
        return _code_output(prediction, len(answer.split()))
    if task == "sci_fi":
        loyalty, fact = _loyalty_and_fact(prediction)
        return _label(loyalty), _label(fact)
    return reference(task, prediction)


def match(extracted: str, expected: str) -> float:
    """Score one extracted answer by L-Eval's exact match: 1, 0.25 or 0.

    Under a key of nothing but the letters A to D, an equal answer scores 1, one that has no letter that the
    key lacks 0.25, any other 0. Under any other key, two numbers score 1 where they are equal; where either
    is no number, the answer scores 1 if it contains the key, ignoring case and spaces.
    """
    if set(_normalised(expected)) <= set("ABCD"):
        said, key = _normalised(extracted), _normalised(expected)
        return 1.0 if said == key else 0.25 if set(said) <= set(key) else 0.0
    try:
        return float(float(extracted) == float(expected))
    except ValueError:
        return float(_squeezed(expected) in _squeezed(extracted))


def score(task: str, predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Percent right over a task's questions; SFiction: the mean of loyalty and fact.

    Raises ValueError if there are no predictions or not as many as answers.
    """
    if len(predictions) != len(answers) or not predictions:
        raise ValueError(
            f"{task} has {len(predictions)} predictions for {len(answers)} answers: nothing to score."
        )
    total = parts = 0
    for prediction, answer in zip(predictions, answers, strict=True):
        extracted, expected = extract(task, prediction, answer), reference(task, answer)
        for said, key in zip(_parts(extracted), _parts(expected), strict=True):
            total, parts = total + match(said, key), parts + 1
    return 100 * total / parts


def _parts(extracted: str | tuple[str, str]) -> tuple[str, ...]:
    """What is matched one by one: SFiction's two labels, or the single answer."""
    return (extracted,) if isinstance(extracted, str) else extracted


def average(scores: Mapping[str, float]) -> float:
    """The unweighted mean of the six tasks, however many questions each has."""
    missing = [task for task in TASKS if task not in scores]
    if missing:
        raise ValueError(f"The average needs all six tasks; missing: {', '.join(missing)}.")
    return sum(scores[task] for task in TASKS) / len(TASKS)


def table_row(scores: Mapping[str, float]) -> dict[str, str]:
    """A row as the papers print it: the six columns in their order, then Avg., two decimals each."""
    cells = {kind.column: scores[task] for task, kind in TASKS.items()}
    return {column: f"{value:.2f}" for column, value in {**cells, "Avg.": average(scores)}.items()}


def _letters(text: str) -> str:
    """The letters A to D of a text, and nothing else."""
    return re.sub("[^A-D]", "", text)


def _options(prediction: str, several: bool) -> str:
    """The options that a prediction names; several: whether more than one may be right."""
    if not prediction.strip():
        return "None"
    if prediction in "ABCD":
        return prediction
    if not several and (letters := _letters(prediction)):
        return letters[0]  # whatever word it begins: "Answer" is A, "Based" is B
    leading = prediction[: len(prediction) - len(prediction.lstrip("ABCD"))]
    if len(leading) > 1:
        return "".join(sorted(set(leading)))
    rest = prediction[len(leading) :].split("Question")[0]
    standing_alone = re.findall(r"[A-Z](?=[\s.)])", rest)  # a letter at the very end is not
    chosen = sorted(set(_letters(leading + "".join(standing_alone))))
    first_run = re.search("[A-D]+", rest)
    return "".join(chosen) or (first_run.group() if first_run else "A")


def _number(text: str) -> str:
    """The digits of the number that a text ends in, before its decimal point."""
    said = re.search(r"The answer is (\S+)", text)
    if said:
        token = said.group(1)
    else:
        tokens = text.split("\n\n")[0].split(" ")
        token = next((token for token in reversed(tokens) if any(map(str.isdigit, token))), "")
    return "".join(filter(str.isdigit, token.split(".")[0]))


def _code(text: str) -> str:
    """A program's output without quotes, commas and superfluous spaces."""
    text = re.sub(r"\s+", " ", text)
    for removed in (",", "'", "\\", ".0"):
        text = text.replace(removed, "")
    return text.replace("] [", "][").replace("[ [", "[[").replace("] ]", "]]")


def _code_output(prediction: str, words: int) -> str:
    """The part of a prediction that is compared with an output of so many words."""
    text = _code(prediction)
    for phrase in _CODE_PHRASES:
        text = text.replace(phrase, "")
    _, announced, after = text.rpartition("the final output")
    tokens = re.split(r"\s+", after)  # an outer space makes an empty token, which counts
    return " ".join(tokens[: words + 3] if announced else tokens[-(words + 3) :])


def _loyalty_and_fact(text: str) -> tuple[str, str]:
    """SFiction's two answers: "True [fact: False]" gives ("true ", " false")."""
    loyalty, *facts = text.lower().split("[fact:")
    return loyalty, facts[0][:-1] if facts else ""


def _label(text: str) -> str:
    """The first "true" or "false" within a word."""
    for word in text.split():
        for label in ("true", "false"):
            if label in word:
                return label
    return "<error>"


def _normalised(text: str) -> str:
    """A text without punctuation and articles, its spaces single."""
    without_punctuation = "".join(filter(lambda character: character not in string.punctuation, text))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split())


def _squeezed(text: str) -> str:
    return text.lower().replace(" ", "")
