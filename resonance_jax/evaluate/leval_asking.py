"""How a model is asked L-Eval's questions: documents are cut, prompts encoded, answers generated greedily.

data.leval has the questions and their prompts, evaluate.leval_scoring scores the answers.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from resonance_jax import generate, rope
from resonance_jax.data import leval
from resonance_jax.data.ids import check_ids, end_ids_within, prompt_ids
from resonance_jax.data.tokenizers import Tokenizer
from resonance_jax.evaluate.leval_scoring import completion
from resonance_jax.model import Decoder

DYNAMIC_SCALES = ("ceil", "exact")
"""How the scale of a dynamic encoding follows a prompt (`declared_length`)."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question as the model reads it.

    Attributes:
        question: the question.
        tokens: the prompt's ids after BOS.
        fact: SFiction's second prompt, which leaves the document out; None for other tasks.
        cut: the document, with its number of tokens before and after it was cut.
    """

    question: leval.Question
    tokens: Int32[np.ndarray, "T"]
    fact: Int32[np.ndarray, "F"] | None
    cut: leval.Cut

    @property
    def longest(self) -> int:
        """How many tokens the longer of its prompts has."""
        return max(len(self.tokens), 0 if self.fact is None else len(self.fact))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A prediction as it is scored.

    Attributes:
        question: what was asked.
        prediction: the text that is scored.
        ended: why its generation ended, "eos", "stop" or "length".
        prompt_tokens: how many tokens the prompt had.
        cut: the document, with its number of tokens before and after it was cut.
    """

    question: leval.Question
    prediction: str
    ended: str
    prompt_tokens: int
    cut: leval.Cut


LeftOut = Callable[[leval.Question, str], None]
"""Called with a question that is not asked, and a sentence that says why."""


def prompts(
    questions: Iterable[leval.Question],
    tokenizer: Tokenizer,
    budget: int,
    vocab_size: int,
    left_out: LeftOut,
    chat: bool = False,
) -> Iterator[Prompt]:
    """The prompts of the questions that can be asked.

    Args:
        questions: in an order in which the questions about one document follow one another.
        tokenizer: of the model.
        budget: tokens that a document may have.
        vocab_size: the rows of the model's embedding.
        left_out: called for every other question.
        chat: ask in the tokenizer's own chat template, not in L-Eval's, which is LLaMA-2's.

    Raises:
        ValueError: a prompt holds a token that the model does not embed; chat without a template.
    """
    if chat and tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer {tokenizer.name} has no chat template; ask in L-Eval's own words.")

    def chat_ids(messages: list[dict[str, str]]) -> Int32[np.ndarray, "T"]:
        return prompt_ids(tokenizer, tokenizer.apply_chat_template(messages), parse_special=True)

    count = lambda text: len(prompt_ids(tokenizer, text))
    cuts: dict[tuple[str, str], leval.Cut | str] = {}
    for question in questions:
        place = question.task, question.document
        try:
            if place not in cuts:
                cuts = {place: _cut(question, budget, count)}
            cut = cuts[place]
            if isinstance(cut, str):
                left_out(question, cut)
                continue
            asked = question.task, cut.text, question.instruction
            tokens = chat_ids(leval.messages(*asked)) if chat else prompt_ids(tokenizer, leval.prompt(*asked))
            fact = None
            if question.task == "sci_fi":
                text = leval.fact_prompt(question.instruction)
                fact = chat_ids([{"role": "user", "content": text}]) if chat else prompt_ids(tokenizer, text)
        except ValueError as error:  # the vocabulary cannot express the question
            left_out(question, str(error))
            continue
        for ids in (tokens, fact):
            if ids is not None:
                check_ids(ids, vocab_size, f"The prompt of question {question.id} of {question.task}")
        yield Prompt(question, tokens, fact, cut)


def _cut(question: leval.Question, budget: int, count: Callable[[str], int]) -> leval.Cut | str:
    """The question's document, cut to the budget; a sentence where it cannot be cut."""
    try:
        return leval.cut(question.document, question.task, budget, count)
    except ValueError as error:
        return str(error)


def declared_length(
    spec: rope.Specs, tokens: int, max_new_tokens: int, length: int, dynamic_scale: str = "ceil"
) -> int:
    """The length in positions that the table of one prompt is declared for.

    Args:
        spec: the encoding; a static one has the same table for every prompt.
        tokens: of the prompt.
        max_new_tokens: that may follow it.
        length: of the run, for a static encoding.
        dynamic_scale: "ceil" is the benchmark's script: a prompt of up to L tokens is asked under the table
            of L, any other under that of the whole multiple of L that holds it and its new tokens. "exact":
            under that of its own length, new tokens included.

    Raises:
        ValueError: for another dynamic_scale.
    """
    if dynamic_scale not in DYNAMIC_SCALES:
        raise ValueError(
            f"unknown dynamic scale {dynamic_scale!r}; expected one of {', '.join(DYNAMIC_SCALES)}."
        )
    if not spec.dynamic:
        return length
    needed, trained = tokens + max_new_tokens, spec.train_length
    if dynamic_scale == "exact" or trained is None:
        return needed
    return trained if tokens <= trained else -(-needed // trained) * trained


@dataclasses.dataclass(frozen=True)
class Asker:
    """Asks one model under one encoding.

    A document goes through the decoder once for all its questions that share a table.

    Attributes:
        lm: the decoder.
        tokenizer: of the model.
        spec: the encoding.
        length: the positions that a static encoding is declared for.
        dynamic_scale: what the table of a dynamic encoding is declared for, prompt by prompt
            (`declared_length`).
        max_new_tokens: the most tokens that an answer may have.
        stop: strings that end an answer early.
        batch_size: the most questions that are asked at once; they share a table.
    """

    lm: Decoder
    tokenizer: Tokenizer
    spec: rope.Specs
    length: int
    dynamic_scale: str = "ceil"
    max_new_tokens: int = leval.MAX_NEW_TOKENS
    stop: Sequence[str] = ()
    batch_size: int = 1

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[list[Answer]]:
        """The answers, batch by batch.

        Questions about one document go on from what they share, a batch at a time; others that share a table
        fill a batch together.
        """
        for (_, declared), same in itertools.groupby(prompts, self._table_of):
            table = rope.frequencies(self.spec, length=declared)
            loose: list[Prompt] = []
            for _, some in itertools.groupby(same, lambda prompt: prompt.cut.text):
                group = list(some)
                shared = generate.share(self.lm, [prompt.tokens for prompt in group], table)
                if shared is None:
                    loose += group
                    while len(loose) >= self.batch_size:
                        yield self._answer(loose[: self.batch_size])
                        loose = loose[self.batch_size :]
                    continue
                for start in range(0, len(group), self.batch_size):
                    yield self._answer(group[start : start + self.batch_size], shared)
            if loose:
                yield self._answer(loose)

    def _table_of(self, prompt: Prompt) -> tuple[str, int]:
        """What the prompts of a batch share: the task, and the length that their table is declared for."""
        return prompt.question.task, self._declared(prompt.tokens)

    def _declared(self, tokens: Int32[np.ndarray, "T"]) -> int:
        return declared_length(self.spec, len(tokens), self.max_new_tokens, self.length, self.dynamic_scale)

    def _answer(self, batch: list[Prompt], shared: generate.SharedPrefix | None = None) -> list[Answer]:
        """The answers to prompts of one task that share a table. shared: what they begin with."""
        said, ended = self._generate([prompt.tokens for prompt in batch], shared)
        facts = [prompt.fact for prompt in batch if prompt.fact is not None]
        if facts:
            # Without their documents the second prompts are short, but each has a table of its own as well.
            alone = len({self._declared(fact) for fact in facts}) > 1
            groups = [[fact] for fact in facts] if alone else [facts]
            told = [pair for group in groups for pair in zip(*self._generate(group), strict=True)]
            said = [leval.with_fact(a, b) for a, (b, _) in zip(said, told, strict=True)]
            ended = [
                "length" if "length" in (first, second) else first
                for first, (_, second) in zip(ended, told, strict=True)
            ]
        return [
            Answer(prompt.question, text, reason, len(prompt.tokens), prompt.cut)
            for prompt, text, reason in zip(batch, said, ended, strict=True)
        ]

    def _generate(
        self, rows: list[Int32[np.ndarray, "_"]], shared: generate.SharedPrefix | None = None
    ) -> tuple[list[str], list[str]]:
        """(the texts, why each ended) that follow prompts which share a table and, if given, a prefix."""
        out = generate.generate(
            self.lm,
            rows,
            rope.frequencies(self.spec, length=self._declared(rows[0])),
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            eos_id=end_ids_within(self.tokenizer, self.lm.config.vocab_size),
            decode=self.tokenizer.decode,
            shared=shared,
        )
        assert out.texts is not None  # because `decode` was given
        return [completion(text) for text in out.texts], list(out.reasons)
