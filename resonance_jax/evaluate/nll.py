"""Per-token negative log-likelihood, the one number every evaluation is made of."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder, head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.parallel.mesh import sharding
from resonance_jax.parallel.pmap import over_devices, replicate

TOKENS_PER_BATCH = 8192


def nll(config: DecoderConfig, params, tokens: jax.Array, freqs: rope.Frequencies) -> jax.Array:
    """NLL in nats of tokens[:, 1:] given what precedes: i32[B, T] -> [B, T-1] in promote_types(f32, dtype).

    Pure; the [B, T, V] logits are never made.
    """
    x = hidden_states(config, params, tokens, freqs)
    return linear_cross_entropy(x[:, :-1], head(config, params), tokens[:, 1:])


_nll = functools.partial(jax.jit, static_argnums=0)(nll)


@functools.cache
def _nll_by_pmap(config: DecoderConfig):
    return over_devices(functools.partial(nll, config))


def token_nll(lm: Decoder, tokens, freqs: rope.Frequencies) -> jax.Array:
    """NLL in nats of every token but a row's first: i32[B, T] -> f32[B, T-1]; compiled once a shape.

    On a mesh the rows lie along its data axes where they divide.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    if lm.mesh is not None:
        tokens = jax.device_put(tokens, sharding(lm.mesh, ("batch", None), tokens.shape))
    return _nll(lm.config, lm.params, tokens, freqs)


def batched_nll(
    lm: Decoder,
    windows: np.ndarray,
    freqs: rope.Frequencies,
    pmap: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, np.ndarray]]:
    """token_nll over many windows of one length, a few at a time: yields (first row, f32[rows, T-1]).

    Batches are powers of two up to tokens_per_batch tokens, padded by repeating the last window, so that a
    handful of shapes are compiled. pmap: split each batch over the local devices with weights copied to
    each (then tokens_per_batch is a device's share).
    """
    devices = jax.local_device_count() if pmap else lm.mesh.size if lm.mesh is not None else 1
    params = replicate(lm.params) if pmap else lm.params
    most = max(1, tokens_per_batch // windows.shape[1]) * devices
    start = 0
    while start < len(windows):
        left = len(windows) - start
        rows = min(most, devices * (1 << max(0, -(-left // devices) - 1).bit_length()))
        index = np.minimum(np.arange(start, start + rows), len(windows) - 1)
        batch = windows[index]
        values = _nll_by_pmap(lm.config)(params, batch, freqs) if pmap else token_nll(lm, batch, freqs)
        yield start, np.asarray(values)[:left]
        start += rows
