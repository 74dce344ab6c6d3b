"""Per-token negative log-likelihood, the one number every evaluation is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder, head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy


def nll(config: DecoderConfig, params, tokens: jax.Array, freqs: rope.Frequencies) -> jax.Array:
    """NLL in nats of tokens[:, 1:] given what precedes: i32[B, T] -> [B, T-1] in promote_types(f32, dtype).

    Pure; the [B, T, V] logits are never made.
    """
    x = hidden_states(config, params, tokens, freqs)
    return linear_cross_entropy(x[:, :-1], head(config, params), tokens[:, 1:])


_nll = functools.partial(jax.jit, static_argnums=0)(nll)


def token_nll(lm: Decoder, tokens, freqs: rope.Frequencies) -> jax.Array:
    """NLL in nats of every token but a row's first: i32[B, T] -> f32[B, T-1]; compiled once a shape."""
    return _nll(lm.config, lm.params, jnp.asarray(tokens, jnp.int32), freqs)


def batched_nll(lm: Decoder, windows: np.ndarray, freqs: rope.Frequencies, tokens_per_batch: int = 8192):
    """token_nll over many windows of one length, a few at a time: i32[W, T] -> f32[W, T-1] on the host.

    The last batch is padded with repeats, so that one shape is compiled. Yields (first row, f32[rows, T-1]).
    """
    rows = max(1, min(len(windows), tokens_per_batch // windows.shape[1]))
    for start in range(0, len(windows), rows):
        index = np.minimum(np.arange(start, start + rows), len(windows) - 1)
        yield start, np.asarray(token_nll(lm, windows[index], freqs))[: len(windows) - start]
