"""Asks a model L-Eval's questions: documents are cut, prompts encoded, answers generated greedily.

data.leval has the questions and their prompts, evaluate.leval_scoring scores the answers.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from resonance_jax import generate, rope
from resonance_jax.data import leval
from resonance_jax.data.ids import prompt_ids
from resonance_jax.data.tokenizers import Tokenizer
from resonance_jax.evaluate.leval_scoring import completion
from resonance_jax.model import Decoder


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question as the model reads it.

    tokens: the prompt's ids after BOS. fact: SFiction's second prompt, which leaves the document out; None
    for other tasks. cut: the document, with its number of tokens before and after it was cut.
    """

    question: leval.Question
    tokens: Int32[np.ndarray, "T"]
    fact: Int32[np.ndarray, "F"] | None
    cut: leval.Cut


@dataclasses.dataclass(frozen=True)
class Answer:
    """A prediction as it is scored. ended: why its generation ended, "eos", "stop" or "length"."""

    question: leval.Question
    prediction: str
    ended: str
    prompt_tokens: int
    cut: leval.Cut


@dataclasses.dataclass(frozen=True)
class Asker:
    """Asks one model under one encoding.

    spec: the encoding. budget: tokens that a document may have. length: positions that the encoding is
    declared for (a dynamic one is declared each question's own: its prompt and the new tokens).
    max_new_tokens: of an answer. stop: strings that end an answer early. batch_size: questions at once.
    """

    lm: Decoder
    tokenizer: Tokenizer
    spec: rope.RopeSpec
    budget: int
    length: int
    max_new_tokens: int = leval.MAX_NEW_TOKENS
    stop: Sequence[str] = ()
    batch_size: int = 1

    def prompts(
        self, questions: Iterable[leval.Question], left_out: Callable[[leval.Question, str], None]
    ) -> Iterator[Prompt]:
        """The prompts of the questions that fit; left_out(question, sentence) is called for every other."""
        cuts: dict[tuple[str, str], leval.Cut | str] = {}
        for question in questions:
            place = question.task, question.document
            if place not in cuts:
                cuts = {place: self._cut(question)}  # a document's questions follow one another
            cut = cuts[place]
            if isinstance(cut, str):
                left_out(question, cut)
                continue
            tokens = self._encode(leval.prompt(question.task, cut.text, question.instruction))
            fact = None
            if question.task == "sci_fi":
                fact = self._encode(leval.fact_prompt(question.instruction))
            needed = max(len(tokens), 0 if fact is None else len(fact)) + self.max_new_tokens
            if needed > self.length:
                left_out(
                    question,
                    f"its prompt and {self.max_new_tokens} new tokens make {needed}, more than the declared "
                    f"length {self.length}.",
                )
                continue
            yield Prompt(question, tokens, fact, cut)

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[list[Answer]]:
        """The answers, batch by batch.

        A dynamic encoding is asked one question at a time, each under a table of its own.
        """
        size = 1 if self.spec.dynamic else self.batch_size
        batch: list[Prompt] = []
        for prompt in prompts:
            if batch and (prompt.question.task != batch[0].question.task or len(batch) == size):
                yield self._answer(batch)
                batch = []
            batch.append(prompt)
        if batch:
            yield self._answer(batch)

    def _answer(self, batch: list[Prompt]) -> list[Answer]:
        """The answers to prompts of one task."""
        said, ended = self._generate([prompt.tokens for prompt in batch])
        facts_asked = [prompt.fact for prompt in batch if prompt.fact is not None]
        if facts_asked:
            facts, fact_ended = self._generate(facts_asked)
            said = [leval.with_fact(a, b) for a, b in zip(said, facts, strict=True)]
            ended = [
                "length" if "length" in pair else pair[0] for pair in zip(ended, fact_ended, strict=True)
            ]
        return [
            Answer(prompt.question, text, reason, len(prompt.tokens), prompt.cut)
            for prompt, text, reason in zip(batch, said, ended, strict=True)
        ]

    def _generate(self, rows: list[Int32[np.ndarray, "_"]]) -> tuple[list[str], list[str]]:
        """(the texts, why each ended) that follow the prompts."""
        needed = max(map(len, rows)) + self.max_new_tokens
        out = generate.generate(
            self.lm,
            rows,
            rope.frequencies(self.spec, length=needed if self.spec.dynamic else self.length),
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            eos_id=self.tokenizer.eos_id,
            decode=self.tokenizer.decode,
        )
        assert out.texts is not None  # because `decode` was given
        return [completion(text) for text in out.texts], list(out.reasons)

    def _cut(self, question: leval.Question) -> leval.Cut | str:
        """The question's document, cut to the budget; a sentence where it cannot be cut."""
        try:
            count = lambda text: len(self._encode(text))
            return leval.cut(question.document, question.task, self.budget, count)
        except ValueError as error:
            return str(error)

    def _encode(self, text: str) -> Int32[np.ndarray, "T"]:
        return prompt_ids(self.tokenizer, text)
