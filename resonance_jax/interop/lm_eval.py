r"""Our decoder as a model of lm-evaluation-harness: RULER, LongBench and hundreds of tasks more.

    python -m resonance_jax.interop.lm_eval run --model resonance-jax --tasks TASKS \
        --model_args pretrained=PATH,encoding=resonance-yarn,scale=8,length=32768

It needs `pip install resonance-jax[lm_eval]`. In Python: import this module, then
lm_eval.simple_evaluate(model="resonance-jax", ...).
"""

import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from resonance_jax import data, evaluate, generate, rope
from resonance_jax.data.prompts import prompt_ids
from resonance_jax.interop.hf_weights import load_hf
from resonance_jax.model import DecoderConfig, hidden_states
from resonance_jax.model.decoder import Params, logits


@functools.partial(jax.jit, static_argnums=0)
def _score(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "1 T"],
    freqs: rope.Frequencies,
    first: Int[Array, ""],
    targets: Int[Array, "C"],
) -> tuple[Float[Array, "C"], Bool[Array, "C"]]:
    """Log probabilities of targets, which are tokens[0, first:], and whether each is the likeliest."""
    x = hidden_states(config, params, tokens, freqs)[0]
    scores = logits(config, params, x[first - 1 + jnp.arange(len(targets), dtype=jnp.int32)])
    logprobs = jax.nn.log_softmax(scores)
    return jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0], scores.argmax(axis=1) == targets


@register_model("resonance-jax")
class ResonanceLM(TemplateLM):
    """A Hugging Face directory under any encoding, for lm_eval; one request at a time.

    A request that is longer than the declared length loses its beginning, as with the harness's own models,
    and a warning says how much. BOS comes first, once, where the tokenizer has one.

    Args:
        pretrained: the directory.
        encoding: "own", what the checkpoint's config states, or a name of rope.named.
        scale: the paper's s; default: the checkpoint's own for its own method, otherwise what takes L to
            `length`.
        train_length: the paper's L in positions; default: what the checkpoint's config states.
        length: positions that the encoding is declared for; a dynamic one is declared each request's own.
        tokenizer: as data.tokenizer reads it; default: the checkpoint's own.
        dtype: of weights and activations.
        harness: batch_size, max_batch_size and device, which the harness passes to every model; not used.

    Raises:
        ValueError: for another argument, and as load_hf and rope.restate_for_length do.
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
        dtype: str = "float32",
        **harness: object,
    ):
        if unknown := set(harness) - {"batch_size", "max_batch_size", "device"}:
            raise ValueError(f"unknown model arguments: {', '.join(sorted(unknown))}.")
        super().__init__()
        self.decoder, self.max_length = load_hf(pretrained, dtype=dtype), int(length)
        own, asked = self.decoder.rope, None if scale is None else float(scale)
        assert own is not None  # a config.json always states one
        self.spec = rope.restate_for_length(
            own, encoding, self.max_length, scale=asked, train_length=train_length
        )
        logging.getLogger(__name__).info("encoding: %s", self.spec)
        self.text = data.tokenizer(tokenizer or pretrained)

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        """The token in front of a text that has nothing before it."""
        return self.text.eos_id if self.text.bos_id is None else self.text.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids, after BOS unless add_special_tokens is False."""
        ids = self.text.encode(string) if add_special_tokens is False else prompt_ids(self.text, string)
        return ids.tolist()

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text, every token scored once, in windows of at most the declared length."""
        totals = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0], False), self.prefix_token_id, self.max_length, context_len=1
            )
            total = 0.0
            for context, scored in map(utils.make_disjoint_window, windows):
                tokens = np.asarray([*context, *scored], np.int32)
                nll = evaluate.token_nll(self.decoder, _padded(tokens), self._table(len(tokens) - 1))
                total -= float(np.asarray(nll)[0, len(context) - 1 : len(tokens) - 1].sum())
            totals.append(total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Nats of each continuation, and whether greedy decoding would give it."""
        out = []
        for _, context, continuation in requests:
            tokens = self._kept([*context, *continuation], self.max_length + 1)
            first, targets = len(tokens) - len(continuation), np.asarray(continuation, np.int32)
            if first < 1:
                raise ValueError(f"a continuation has {len(targets)} tokens, length={self.max_length}.")
            row, room = _padded(tokens), -len(targets) % 64
            asked = row, self._table(len(tokens) - 1), np.int32(first), np.pad(targets, (0, room))
            found, likeliest = _score(self.decoder.config, self.decoder.params, *asked)
            out.append((float(found[: len(targets)].sum()), bool(likeliest[: len(targets)].all())))
        return out

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a stop string, EOS or the task's number of tokens."""
        texts = []
        for number, (context, options) in enumerate(request.args for request in requests):
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else [text for text in until if text]
            new = int(options.get("max_gen_toks", self.max_gen_toks))
            temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
            tokens = self._kept(self.tok_encode(context), self.max_length - new)
            out = generate.generate(
                self.decoder,
                [tokens],
                self._table(len(tokens) + new),
                max_new_tokens=new,
                stop=until,
                eos_id=self.text.eos_id,
                temperature=temperature,
                key=jax.random.fold_in(jax.random.key(0), number),
                decode=self.text.decode,
            )
            assert out.texts is not None  # because `decode` was given
            texts += out.texts
        return texts

    def _table(self, length: int) -> rope.Frequencies:
        """The table for a request of so many positions."""
        return rope.frequencies(self.spec, length=length if self.spec.dynamic else self.max_length)

    def _kept(self, tokens: list[int], most: int) -> Int32[np.ndarray, "T"]:
        """The last `most` tokens; a warning says when that is not all of them."""
        if most < 1:
            raise ValueError(f"length={self.max_length} leaves no room for a prompt; declare more.")
        if (lost := len(tokens) - most) > 0:
            logging.getLogger(__name__).warning(
                "a request of %d tokens lost its first %d.", len(tokens), lost
            )
        return np.asarray(tokens[-most:], np.int32)


def _padded(tokens: Int32[np.ndarray, "T"]) -> Int32[np.ndarray, "1 bucket"]:
    """One row, padded on the right to a length that programs are compiled for."""
    return np.pad(tokens, (0, generate.bucket(len(tokens)) - len(tokens)))[None]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
