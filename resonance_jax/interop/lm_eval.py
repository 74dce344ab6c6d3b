r"""Our decoder as a model of lm-evaluation-harness: RULER, LongBench and hundreds of tasks more.

    python -m resonance_jax.interop.lm_eval run --model resonance-jax --tasks TASKS \
        --model_args pretrained=PATH,encoding=resonance-yarn,scale=8,length=32768

It needs `pip install resonance-jax[lm_eval]`. In Python: import this module, then
lm_eval.simple_evaluate(model="resonance-jax", ...).
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from resonance_jax import data, evaluate, generate, rope
from resonance_jax.interop.hf_weights import load_hf
from resonance_jax.model import hidden_states
from resonance_jax.model.decoder import logits


@functools.partial(jax.jit, static_argnums=0)
def _score(config, params, tokens, freqs, first, targets):
    """Log probabilities f32[C] of targets i32[C], tokens[0, first:]; whether each is the likeliest."""
    x = hidden_states(config, params, tokens, freqs)[0]
    scores = logits(config, params, x[first - 1 + jnp.arange(len(targets), dtype=jnp.int32)])
    logprobs = jax.nn.log_softmax(scores)
    return jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0], scores.argmax(axis=1) == targets


@register_model("resonance-jax")
class ResonanceLM(TemplateLM):
    """A Hugging Face directory under any encoding, for lm_eval; one request at a time.

    encoding: "own", what the checkpoint's config states, or a name that rope.named knows, with scale (the
    paper's s) and train_length as rope.restate reads them. length: positions that it is declared for; a
    dynamic method is declared each request's own. A longer request loses its beginning, as with the harness's
    own models, and a warning says how much. BOS comes first, once, where the tokenizer has one. Raises
    ValueError as load_hf and rope.restate do.
    """

    max_gen_toks = 256  # where a task does not say

    def __init__(
        self,
        pretrained: str,
        encoding: str = "own",
        scale: float | None = None,
        train_length: int | None = None,
        length: int = 4096,
        tokenizer: str | None = None,
        dtype: str = "float32",
        **harness,  # batch_size, max_batch_size and device, which it passes to every model
    ):
        if unknown := set(harness) - {"batch_size", "max_batch_size", "device"}:
            raise ValueError(f"unknown model arguments: {', '.join(sorted(unknown))}.")
        super().__init__()
        self.decoder = load_hf(pretrained, dtype=dtype)
        self.spec = rope.restate(
            self.decoder.rope,
            encoding,
            scale=None if scale is None else float(scale),
            train_length=train_length,
        )
        self.text = data.tokenizer(tokenizer or pretrained)
        self.max_length = int(length)

    @property
    def eot_token_id(self) -> int:
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.text.eos_id if self.text.bos_id is None else self.text.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        tokens, bos = self.text.encode(string).tolist(), self.text.bos_id
        return tokens if bos is None or add_special_tokens is False else [bos, *tokens]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
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

    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
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

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        texts = []
        for number, (context, options) in enumerate(request.args for request in requests):
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else [text for text in until if text]
            new = int(options.get("max_gen_toks", self.max_gen_toks))
            temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
            tokens = self._kept(self.tok_encode(context), self.max_length - new)
            texts += generate.generate(
                self.decoder,
                [tokens],
                self._table(len(tokens) + new),
                max_new_tokens=new,
                stop=until,
                eos_id=self.text.eos_id,
                temperature=temperature,
                key=jax.random.fold_in(jax.random.key(0), number),
                decode=self.text.decode,
            ).texts
        return texts

    def _table(self, length: int) -> rope.Frequencies:
        return rope.frequencies(self.spec, length=length if self.spec.dynamic else self.max_length)

    def _kept(self, tokens: list[int], most: int) -> np.ndarray:
        """The last `most` tokens; says when that are not all."""
        if most < 1:
            raise ValueError(f"length={self.max_length} leaves no room for a prompt; declare more.")
        if (lost := len(tokens) - most) > 0:
            logging.getLogger(__name__).warning(
                "a request of %d tokens lost its first %d.", len(tokens), lost
            )
        return np.asarray(tokens[-most:], np.int32)


def _padded(tokens: np.ndarray) -> np.ndarray:
    """[1, T] on the right to a length that programs are compiled for."""
    return np.pad(tokens, (0, generate.bucket(len(tokens)) - len(tokens)))[None]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
