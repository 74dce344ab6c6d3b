"""Passkey retrieval: a number hidden at some depth of a long text, which the model is asked for at its end.

After Mohtashami and Jaggi 2023 (landmark attention), as YaRN's passkey.py builds and judges it. The wording
of the text is a parameter, and every result names it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Int32, Int64

from resonance_jax import generate, rope
from resonance_jax.data.ids import check_ids, end_ids_within, prompt_ids
from resonance_jax.data.tokenizers import Tokenizer
from resonance_jax.evaluate.binomial import wilson
from resonance_jax.model import Decoder

PASSED = 0.8
"""Share of keys to find at a length that counts as within reach (YaRN, table 5)."""


@dataclasses.dataclass(frozen=True)
class Template:
    """The wording of a prompt: five lines, of which the second and the fourth are garbage.

    Attributes:
        name: what results call it.
        intro, question: the first and the last line.
        garbage: a sentence that is repeated, joined by spaces, and cut by characters.
        needle: the line that holds the key, with "{key}" in its place.
        keys: the smallest and the largest key.
        max_new_tokens: the most tokens that a model may answer with.
        step: characters by which the garbage grows until it fills the length.
    """

    name: str
    intro: str
    garbage: str
    needle: str
    question: str
    keys: tuple[int, int]
    max_new_tokens: int
    step: int

    def prompt(self, key: int, characters: int, depth: float) -> str:
        """The prompt with so many characters of garbage, of which the share `depth` precedes the key."""
        before = round(depth * characters)
        needle = self.needle.format(key=key)
        return "\n".join(
            [self.intro, self._cut(before), needle, self._cut(characters - before), self.question]
        )

    def answer(self, key: int) -> str:
        """The right continuation of a prompt, up to the character that ends the key."""
        return f" {key}."

    def _cut(self, characters: int) -> str:
        """So many characters of garbage."""
        repeats = characters // (len(self.garbage) + 1) + 1
        return " ".join([self.garbage] * repeats)[:characters]


TEMPLATES = {
    "landmark": Template(
        name="landmark",
        intro="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.",
        garbage="The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
        needle="The pass key is {key}. Remember it. {key} is the pass key.",
        question="What is the pass key? The pass key is",
        keys=(1, 50_000),
        max_new_tokens=10,
        step=128,
    ),
    "short-bytes": Template(
        name="short-bytes",
        intro="Find the key.",
        garbage="Rain falls, rivers run, the sea waits.",
        needle="Key {key}.",
        question="Key",
        keys=(1000, 9999),
        max_new_tokens=6,
        step=1,
    ),
}
"""`landmark` is the original wording, for pretrained tokenizers; `short-bytes` is our own, for models of
bytes trained on it, and comparable with nothing else."""


class Cell(TypedDict):
    """One cell of the grid: the keys found at one depth of prompts of one length.

    Attributes:
        template: the name of the wording.
        length: tokens that a prompt was made for.
        depth: the share of the garbage that precedes the key.
        trials: how many keys were asked for.
        right: how many of them were found.
        share: right / trials.
        low, high: the 95 % Wilson interval of the share.
        prompt_tokens: how many tokens the longest prompt has.
        answers: each key, and the text that the model answered with.
    """

    template: str
    length: int
    depth: float
    trials: int
    right: int
    share: float
    low: float
    high: float
    prompt_tokens: int
    answers: list[tuple[int, str]]


def template(name: str) -> Template:
    """The template of a name. Raises ValueError when there is none."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown passkey template {name!r}; expected one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def garbage_characters(wording: Template, length: int, count_tokens: Callable[[str], int]) -> int:
    """The most characters of garbage, in whole steps, with which a prompt fits into `length` tokens.

    A template with step 1 fills the length exactly, its new tokens included. A larger step, as `landmark`
    has, leaves no room for the new tokens, as in YaRN's script.

    Args:
        wording: the template.
        length: tokens of a prompt.
        count_tokens: gives the tokens of a whole prompt, BOS included.

    Raises:
        ValueError: when the wording alone is too long.
    """
    most = wording.keys[1]
    room = length - 1 if wording.step > 1 else length - wording.max_new_tokens
    fits = lambda steps: count_tokens(wording.prompt(most, steps * wording.step, 0.5)) <= room
    if not fits(0):
        raise ValueError(f"the passkey template {wording.name!r} alone is longer than {length} tokens.")
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * wording.step


def draw_keys(wording: Template, count: int, seed: int) -> Int64[np.ndarray, "{count}"]:
    """Keys, uniform over the template's; fewer keys of the same seed are the first ones of more."""
    first, last = wording.keys
    words = np.random.Philox(np.random.SeedSequence([seed, 1])).random_raw(count)
    return (first + words % np.uint64(last - first + 1)).astype(np.int64)


def found(text: str, key: int) -> bool:
    """Whether the first whole number in a continuation is the key."""
    number = re.search(r"\d+", text)
    return number is not None and int(number.group()) == key


def training_batch(
    wording: Template,
    tokenizer: Tokenizer,
    length: int,
    rows: int,
    seed: int,
    step: int,
    questions: int = 1,
) -> dict[str, Int32[np.ndarray, "{rows} {length}"]]:
    """ "tokens" and "targets" of passkey texts, a function of (seed, step).

    Depth and amount of garbage are uniform, up to what fills the length. Only answers are scored: every
    other target is -100.

    Args:
        wording: the template.
        tokenizer: what the texts are encoded with.
        length: tokens of a row.
        rows: texts of a batch.
        seed, step: what the batch depends on.
        questions: how often the key is asked for at the end; more often makes short rows teach more.

    Raises:
        ValueError: when the wording alone does not fit into the length.
    """
    again = "\n" + wording.question
    repeated = (again + wording.answer(wording.keys[1])) * (questions - 1)
    most = garbage_characters(wording, length, lambda text: len(prompt_ids(tokenizer, text + repeated)))
    words = np.random.Philox(np.random.SeedSequence([seed, 2, step])).random_raw(3 * rows)
    uniform = (words >> np.uint64(11)).astype(np.float64).reshape(3, rows) * 2.0**-53
    first, last = wording.keys
    tokens = np.zeros((rows, length), np.int32)
    targets = np.full((rows, length), -100, np.int32)
    for row, (draw, amount, depth) in enumerate(uniform.T):
        key = first + int(draw * (last - first + 1))
        asked = prompt_ids(tokenizer, wording.prompt(key, int(amount * (most + 1)), depth))
        answer, between = tokenizer.encode(wording.answer(key)), tokenizer.encode(again)
        told = np.concatenate([asked, *[answer, between] * questions])[: -len(between)]
        tokens[row, : len(told)] = told
        for at in range(len(asked), len(told), len(answer) + len(between)):
            targets[row, at : at + len(answer)] = answer
    return {"tokens": tokens, "targets": targets}


def questions(
    wording: Template, tokenizer: Tokenizer, length: int, depth: float, trials: int, seed: int = 0
) -> tuple[Int64[np.ndarray, "trials"], list[Int32[np.ndarray, "_"]]]:
    """The keys of a cell and the prompts that hide them; they are the same for every encoding.

    Args:
        wording: the template.
        tokenizer: what the prompts are encoded with.
        length: tokens of a prompt.
        depth: the share of the garbage that precedes the key, 0 … 1.
        trials: how many keys.
        seed: of the keys.

    Raises:
        ValueError: for another depth, no trials, and when the wording alone is longer than the length.
    """
    if not 0 <= depth <= 1 or trials < 1:
        raise ValueError(f"expected a depth in 0 … 1 and at least 1 trial, got {depth} and {trials}.")
    characters = garbage_characters(wording, length, lambda text: len(prompt_ids(tokenizer, text)))
    keys = draw_keys(wording, trials, seed + round(1e6 * depth) + length)
    return keys, [prompt_ids(tokenizer, wording.prompt(int(key), characters, depth)) for key in keys]


def cell(
    lm: Decoder,
    tokenizer: Tokenizer,
    spec: rope.Specs,
    wording: Template,
    length: int,
    depth: float,
    trials: int,
    seed: int = 0,
    batch_size: int = 8,
) -> Cell:
    """Ask a model for `trials` keys, each at one depth of a prompt of one length, greedily.

    Args:
        lm: the decoder.
        tokenizer: what the prompts are encoded with.
        spec: the encoding; a dynamic one is declared the longest prompt and its new tokens.
        wording, length, depth, trials, seed: of the prompts, as `questions` takes them.
        batch_size: prompts at once.

    Raises:
        ValueError: as `questions` does, and where a prompt holds a token that the model does not embed.
    """
    keys, prompts = questions(wording, tokenizer, length, depth, trials, seed)
    check_ids(np.concatenate(prompts), lm.config.vocab_size, f"A prompt of {length} tokens")
    longest = max(map(len, prompts)) + wording.max_new_tokens
    freqs = rope.frequencies(spec, length=longest)
    said: list[str] = []
    for start in range(0, trials, batch_size):
        out = generate.generate(
            lm,
            prompts[start : start + batch_size],
            freqs,
            max_new_tokens=wording.max_new_tokens,
            eos_id=end_ids_within(tokenizer, lm.config.vocab_size),
            decode=tokenizer.decode,
        )
        assert out.texts is not None  # because `decode` was given
        said += out.texts
    right = sum(found(text, int(key)) for text, key in zip(said, keys, strict=True))
    interval = wilson(right, trials)
    return {
        "template": wording.name,
        "length": length,
        "depth": depth,
        "trials": trials,
        "right": right,
        "share": right / trials,
        "low": interval.low,
        "high": interval.high,
        "prompt_tokens": longest - wording.max_new_tokens,
        "answers": [(int(key), text) for key, text in zip(keys, said, strict=True)],
    }


def by_length(cells: Iterable[Cell]) -> dict[int, tuple[int, int]]:
    """Keys found and keys asked for at each length, over all depths."""
    totals: dict[int, tuple[int, int]] = {}
    for one in cells:
        right, trials = totals.get(one["length"], (0, 0))
        totals[one["length"]] = right + one["right"], trials + one["trials"]
    return dict(sorted(totals.items()))


def reach(cells: Sequence[Cell]) -> int | None:
    """The longest tested length at which at least 80 % of the keys are found (YaRN's passkey context)."""
    passed = [n for n, (right, trials) in by_length(cells).items() if right >= PASSED * trials]
    return max(passed, default=None)
