"""A model's answers to L-Eval's questions: documents cut, prompts encoded, answers generated greedily."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from resonance_jax import generate, rope
from resonance_jax.data import leval
from resonance_jax.evaluate.leval import completion
from resonance_jax.model import Decoder


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked: token ids after BOS, and SFiction's second prompt (without the document) or None; the
    document's tokens before and after it was cut."""

    question: leval.Question
    tokens: np.ndarray
    fact: np.ndarray | None
    cut: leval.Cut


@dataclasses.dataclass(frozen=True)
class Answer:
    """A prediction as it is scored, and why its generation ended: "eos", "stop" or "length"."""

    question: leval.Question
    prediction: str
    ended: str
    prompt_tokens: int
    cut: leval.Cut


@dataclasses.dataclass(frozen=True)
class Asker:
    """Asks one model under one encoding.

    budget: tokens a document may have. length: positions that the encoding is declared for (a dynamic one is
    declared each question's own: its prompt and the new tokens). stop: strings that end an answer early.
    """

    lm: Decoder
    tokenizer: object
    spec: rope.RopeSpec
    budget: int
    length: int
    max_new_tokens: int = leval.MAX_NEW_TOKENS
    stop: Sequence[str] = ()
    batch_size: int = 1

    def prompts(
        self, questions: Iterable[leval.Question], left_out: Callable[[leval.Question, str], None]
    ) -> Iterator[Prompt]:
        """What fits; left_out(question, sentence) is called for what does not."""
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
        """The answers, batch by batch; a dynamic encoding is asked one at a time, under its own table."""
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
        said, ended = self._generate([prompt.tokens for prompt in batch])
        if batch[0].fact is not None:
            facts, fact_ended = self._generate([prompt.fact for prompt in batch])
            said = [leval.with_fact(a, b) for a, b in zip(said, facts, strict=True)]
            ended = [
                "length" if "length" in pair else pair[0] for pair in zip(ended, fact_ended, strict=True)
            ]
        return [
            Answer(prompt.question, text, reason, len(prompt.tokens), prompt.cut)
            for prompt, text, reason in zip(batch, said, ended, strict=True)
        ]

    def _generate(self, rows: list[np.ndarray]) -> tuple[list[str], list[str]]:
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
        return [completion(text) for text in out.texts], list(out.reasons)

    def _cut(self, question: leval.Question) -> leval.Cut | str:
        try:
            count = lambda text: len(self._encode(text))
            return leval.cut(question.document, question.task, self.budget, count)
        except ValueError as error:
            return str(error)

    def _encode(self, text: str) -> np.ndarray:
        tokens, bos = self.tokenizer.encode(text), self.tokenizer.bos_id
        return tokens if bos is None else np.concatenate([[bos], tokens]).astype(np.int32)
