r"""Our decoder as a model of lm-evaluation-harness: RULER, LongBench and hundreds of tasks more.

    python -m resonance_jax.interop.lm_eval run --model resonance-jax --tasks TASKS \
        --model_args pretrained=PATH,encoding=resonance-yarn,scale=8,length=32768

It needs `pip install resonance-jax[lm_eval]`. In Python: import this module, then
lm_eval.simple_evaluate(model="resonance-jax", ...).
"""

import functools
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]  # an optional library
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]  # an optional library
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]  # an optional library
from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]  # optional
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]  # an optional library
    get_rolling_token_windows,
    make_disjoint_window,
    warning_once,
)

from resonance_jax import data, digest, evaluate, generate, rope
from resonance_jax.interop.checkpoint import open_checkpoint
from resonance_jax.interop.hf_weights import load_hf
from resonance_jax.model import DecoderConfig, hidden_states
from resonance_jax.model.decoder import Params, logits
from resonance_jax.parallel.mesh import Device

LOG = logging.getLogger(__name__)
GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
"""Options of a generation that are followed, after the harness has given them their own names."""


@functools.partial(jax.jit, static_argnums=0)
def _score(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    freqs: rope.Tables,
    first: Int[Array, "B"],
    targets: Int[Array, "B C"],
) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
    """Log probabilities of targets, of row b tokens[b, first[b]:], and whether each is the likeliest."""
    x = hidden_states(config, params, tokens, freqs)
    places = first[:, None] - 1 + jnp.arange(targets.shape[1], dtype=jnp.int32)[None]
    scores = logits(config, params, jnp.take_along_axis(x, places[..., None], axis=1, mode="clip"))
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], axis=2)[..., 0]
    return logprobs, scores.argmax(axis=2) == targets


@register_model("resonance-jax")
class ResonanceLM(TemplateLM):
    """A checkpoint under any encoding, for lm_eval.

    A request that is longer than the declared length loses its beginning, as with the harness's own models,
    and a warning says how much. BOS comes first, once, where the tokenizer puts one there. Special tokens
    that a text spells are tokens, as the harness's own models read them: chat templates are written so.

    Args:
        pretrained: a Hugging Face directory, a GGUF file, or the name of a packaged checkpoint.
        encoding: "own", what the checkpoint's config states, or a name of rope.named.
        scale: the paper's s; default: the checkpoint's own for its own method, otherwise what takes L to
            `length`.
        train_length: the paper's L in positions; default: what the checkpoint's config states.
        length: positions that the encoding is declared for; a dynamic one is declared each request's own.
        tokenizer: as data.tokenizer reads it; default: the checkpoint's own.
        bos: what stands in front: "auto", "none", or a token's id.
        dtype: of weights and activations.
        batch_size: requests at once, as far as they share a table and their options.
        device: as the harness names it: "cpu", "cuda", "cuda:1", "tpu"; default: jax's own choice.
        harness: max_batch_size, which the harness passes too and which means nothing here.

    Raises:
        ValueError: for another argument or value, and as load_hf and rope.restate_for_length do.
    """

    max_gen_toks = 256
    """New tokens where a task does not say how many."""

    def __init__(
        self,
        pretrained: str,
        encoding: str = "own",
        scale: float | None = None,
        train_length: int | None = None,
        length: int = 4096,
        tokenizer: str | None = None,
        bos: str | int = "auto",
        dtype: str = "float32",
        batch_size: int | str | None = None,
        device: str | None = None,
        **harness: object,
    ) -> None:
        if unknown := set(harness) - {"max_batch_size"}:
            raise ValueError(f"unknown model arguments: {', '.join(sorted(unknown))}.")
        if harness.get("max_batch_size") is not None:
            raise ValueError(
                "max_batch_size limits what batch_size=auto finds out, which is not done here: leave it out, "
                "and give batch_size as a number."
            )
        super().__init__()
        self.batch_size, self.max_length = _batch_size(batch_size), int(length)
        place = None if device is None else _device(device)
        checkpoint = open_checkpoint(pretrained)
        self.spec = rope.restate_for_length(
            checkpoint.rope,
            encoding,
            self.max_length,
            scale=None if scale is None else float(scale),
            train_length=train_length,
        )
        LOG.info("encoding: %s", self.spec)
        self.text = checkpoint.tokenizer(bos=bos) if tokenizer is None else data.tokenizer(tokenizer, bos=bos)
        with jax.default_device(place):
            self.decoder = load_hf(checkpoint.path, dtype=dtype)
        if place is not None:
            self.decoder = self.decoder.replace_params(jax.device_put(self.decoder.params, place))

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text that has nothing before it."""
        found = self.text.eos_id if self.text.bos_id is None else self.text.bos_id
        if found is None:
            raise ValueError("the tokenizer has no BOS and no EOS to begin a text with: give bos=ID.")
        return found

    @property
    def tokenizer_name(self) -> str:
        """A name by which the harness's cache of requests tells tokenizers and chat templates apart."""
        return digest.of_json([self.text.fingerprint, self.text.chat_template])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The chat template, which the harness writes down; "" where none is asked for.

        Raises ValueError where there is none, or none of the name that was asked for.
        """
        if not chat_template:
            return ""
        if self.text.chat_template is None:
            raise ValueError(f"The tokenizer {self.text.name} has no chat template: leave it out.")
        if isinstance(chat_template, str) and chat_template != "default":
            raise ValueError(f"unknown chat template {chat_template!r}; only the default one is read here.")
        return self.text.chat_template

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation under the checkpoint's chat template.

        A template that refuses it is given it without what "system" says, and a warning, as the harness's own
        models do.

        Args:
            chat_history: {"role", "content"} each.
            add_generation_prompt: end with what opens the assistant's answer; otherwise the last message is
                the beginning of that answer, and left open.

        Raises:
            ValueError: there is no chat template, or it refuses the conversation.
        """
        try:
            text = self.text.apply_chat_template(chat_history, add_generation_prompt)
        except ValueError as error:
            plain = [message for message in chat_history if message["role"] != "system"]
            if self.text.chat_template is None or len(plain) == len(chat_history):
                raise
            LOG.warning("%s The system's messages are left out.", error)
            text = self.text.apply_chat_template(plain, add_generation_prompt)
        return text if add_generation_prompt else _open(text, chat_history[-1]["content"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids, after BOS unless add_special_tokens is False."""
        ids = self.text.encode(string, parse_special=True)
        data.check_ids(ids, self.decoder.config.vocab_size, "a request")
        return (ids if add_special_tokens is False else data.with_bos(ids, self.text.bos_id)).tolist()

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text, every token scored once, in windows of at most the declared length."""
        windows = [
            (number, context, scored)
            for number, request in enumerate(requests)
            for context, scored in map(
                make_disjoint_window,
                get_rolling_token_windows(
                    self.tok_encode(request.args[0], False),
                    self.prefix_token_id,
                    self.max_length,
                    context_len=1,
                ),
            )
        ]
        rows = [np.asarray([*context, *scored], np.int32) for _, context, scored in windows]
        totals = [0.0] * len(requests)
        for batch in self._batches([len(row) - 1 for row in rows]):
            table = self._table(len(rows[batch[0]]) - 1)
            nll = np.asarray(evaluate.token_nll(self.decoder, _padded([rows[i] for i in batch]), table))
            for i, found in zip(batch, nll, strict=True):
                number, context, _ = windows[i]
                totals[number] -= float(found[len(context) - 1 : len(rows[i]) - 1].sum())
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Nats of each continuation, and whether greedy decoding would give it."""
        rows = []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise ValueError(f"a continuation has {len(continuation)} tokens, length={self.max_length}.")
            rows.append(self._kept([*context, *continuation], self.max_length + 1))
        counts = [len(continuation) for _, _, continuation in requests]
        out: dict[int, tuple[float, bool]] = {}
        for batch in self._batches([len(row) - 1 for row in rows]):
            first = np.asarray([len(rows[i]) - counts[i] for i in batch], np.int32)
            room = max(counts[i] for i in batch)
            targets = np.zeros((len(batch), room + -room % 64), np.int32)
            for row, i in zip(targets, batch, strict=True):
                row[: counts[i]] = requests[i][2]
            asked = _padded([rows[i] for i in batch]), self._table(len(rows[batch[0]]) - 1), first, targets
            found, likeliest = map(np.asarray, _score(self.decoder.config, self.decoder.params, *asked))
            for i, nats, best in zip(batch, found, likeliest, strict=True):
                out[i] = float(nats[: counts[i]].sum()), bool(best[: counts[i]].all())
        return [out[i] for i in range(len(requests))]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a stop string, EOS or the task's number of tokens."""
        asked = [self._options(request.args[1]) for request in requests]
        rows = [
            self._kept(self.tok_encode(request.args[0]), self.max_length - new)
            for request, (new, *_) in zip(requests, asked, strict=True)
        ]
        texts: dict[int, str] = {}
        # What is drawn depends on the number of the request, whatever the batch: one at a time.
        alone = [number if temperature > 0 else -1 for number, (_, _, temperature, _) in enumerate(asked)]
        lengths = [len(row) + new for row, (new, *_) in zip(rows, asked, strict=True)]
        for batch in self._batches(lengths, [*zip(asked, alone, strict=True)]):
            new, until, temperature, top_p = asked[batch[0]]
            out = generate.generate(
                self.decoder,
                [rows[i] for i in batch],
                self._table(lengths[batch[0]]),
                max_new_tokens=new,
                stop=until,
                eos_id=data.end_ids_within(self.text, self.decoder.config.vocab_size),
                temperature=temperature,
                top_p=top_p,
                key=jax.random.fold_in(jax.random.key(0), batch[0]),
                decode=self.text.decode,
            )
            assert out.texts is not None  # because `decode` was given
            texts |= dict(zip(batch, out.texts, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _options(self, options: Mapping[str, object]) -> tuple[int, tuple[str, ...], float, float]:
        """(new tokens, stop strings, temperature, top_p), under whichever of its names a task gives each."""
        given: dict[str, Any] = {**normalize_gen_kwargs(dict(options), self.max_gen_toks)}
        if ignored := sorted(given.keys() - GENERATION):
            warning_once(LOG, f"generation options that are not followed: {', '.join(ignored)}.")
        until = tuple(text for text in given["until"] if text)
        sampled = bool(given["do_sample"])
        temperature = float(given.get("temperature") or 0.0) if sampled else 0.0
        return int(given["max_gen_toks"]), until, temperature, float(given.get("top_p") or 1.0)

    def _batches(
        self, lengths: Sequence[int], alike: Sequence[Hashable] | None = None
    ) -> Iterator[list[int]]:
        """Numbers of requests to compute at once, the longest first.

        Args:
            lengths: of each request in positions; those of a dynamic encoding share a table only where they
                are equally long.
            alike: what the requests of a batch have to agree in.
        """

        def shared(number: int) -> tuple[Hashable, int]:
            length = lengths[number] if self.spec.dynamic else self.max_length
            return (None if alike is None else alike[number]), length

        groups: dict[tuple[Hashable, int], list[int]] = {}
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            groups.setdefault(shared(number), []).append(number)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _table(self, length: int) -> rope.Tables:
        """The table for a request of so many positions."""
        return rope.frequencies(self.spec, length=length if self.spec.dynamic else self.max_length)

    def _kept(self, tokens: list[int], most: int) -> Int32[np.ndarray, "T"]:
        """The last `most` tokens; a warning says when that is not all of them."""
        if most < 1:
            raise ValueError(f"length={self.max_length} leaves no room for a prompt; declare more.")
        if (lost := len(tokens) - most) > 0:
            LOG.warning("a request of %d tokens lost its first %d.", len(tokens), lost)
        return np.asarray(tokens[-most:], np.int32)


def _padded(rows: Sequence[Int32[np.ndarray, "_"]]) -> Int32[np.ndarray, "B T"]:
    """Rows padded on the right to a length that programs are compiled for."""
    padded = np.zeros((len(rows), generate.bucket(max(map(len, rows)))), np.int32)
    for empty, row in zip(padded, rows, strict=True):
        empty[: len(row)] = row
    return padded


def _open(text: str, last: str) -> str:
    """A conversation cut behind the words of its last message, so that they can be gone on with."""
    begun, kept = last.lstrip(), last.strip()
    at = text.rindex(kept)
    return text[: at + len(begun if text.startswith(begun, at) else kept)]


def _batch_size(given: int | str | None) -> int:
    """The harness's batch_size as a number. Raises ValueError for "auto", and what is no number from 1 on."""
    number = 1 if given is None else given
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {given!r}.")
    return number


def _device(name: str) -> Device:
    """The device of a name of the harness's. Raises ValueError where jax has none."""
    kind, _, number = name.partition(":")
    platform = {"cuda": "gpu"}.get(kind, kind)
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        here = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            f"there is no device {name!r} here; jax has {len(jax.devices())} of the kind {here}."
        ) from None


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]  # an optional library

    cli_evaluate()
