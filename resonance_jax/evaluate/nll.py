"""Negative log-likelihood (NLL) per token, the one number that every evaluation is made of."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder, Params, head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.parallel.mesh import automatic_axes, placed, sharding
from resonance_jax.parallel.pmap import over_devices

TOKENS_PER_BATCH = 8192
"""Tokens that go through a decoder at once: enough to keep a device busy."""


def nll(
    config: DecoderConfig, params: Params, tokens: Int[Array, "B T"], freqs: rope.Tables
) -> Float[Array, "B T-1"]:
    """NLL in nats of every token but a row's first, each given the tokens before it.

    Pure; the [B, T, V] logits are never made. Computed in promote_types(float32, dtype of the activations).
    """
    x = hidden_states(config, params, tokens, freqs)
    if automatic_axes(x).get("sequence", 1) == 1:
        return linear_cross_entropy(x[:, :-1], head(config, params), tokens[:, 1:])
    # Where time is cut its length stays what the devices divide: the last position is scored, and left out.
    return linear_cross_entropy(x, head(config, params), jnp.roll(tokens, -1, axis=1))[:, :-1]


_nll = functools.partial(jax.jit, static_argnums=0)(nll)


@functools.cache
def _nll_by_pmap(config: DecoderConfig) -> Callable[..., np.ndarray]:
    """`nll` over the local devices at once."""
    return over_devices(functools.partial(nll, config))


def token_nll(
    lm: Decoder, tokens: Integer[Array | np.ndarray, "B T"], freqs: rope.Tables
) -> Float[Array, "B T-1"]:
    """NLL in nats of every token but a row's first; compiled once per shape.

    On a mesh the rows lie along its data axes, where these divide them. One that spans processes is given the
    same tokens by each of them.
    """
    if lm.mesh is not None:
        host = np.asarray(tokens, np.int32)
        tokens = placed(host, sharding(lm.mesh, ("batch", None), host.shape))
    return _nll(lm.config, lm.params, jnp.asarray(tokens, jnp.int32), freqs)


def token_nll_by_pmap(
    lm: Decoder, tokens: Integer[np.ndarray, "B T"], freqs: rope.Tables
) -> Float[np.ndarray, "B T-1"]:
    """token_nll with rows split over the local devices, each of which has the weights whole."""
    return _nll_by_pmap(lm.config)(lm.params, tokens, freqs)
