"""Negative log-likelihood (NLL) per token, the one number that every evaluation is made of."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Decoder, Params, head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.parallel.mesh import sharding
from resonance_jax.parallel.pmap import over_devices, replicate

TOKENS_PER_BATCH = 8192
"""Tokens that go through a decoder at once: enough to keep a device busy."""


def nll(
    config: DecoderConfig, params: Params, tokens: Int[Array, "B T"], freqs: rope.Tables
) -> Float[Array, "B T-1"]:
    """NLL in nats of every token but a row's first, each given the tokens before it.

    Pure; the [B, T, V] logits are never made. Computed in promote_types(float32, dtype of the activations).
    """
    x = hidden_states(config, params, tokens, freqs)
    return linear_cross_entropy(x[:, :-1], head(config, params), tokens[:, 1:])


_nll = functools.partial(jax.jit, static_argnums=0)(nll)


@functools.cache
def _nll_by_pmap(config: DecoderConfig) -> Callable[..., np.ndarray]:
    """`nll` over the local devices at once."""
    return over_devices(functools.partial(nll, config))


def token_nll(
    lm: Decoder, tokens: Integer[Array | np.ndarray, "B T"], freqs: rope.Tables
) -> Float[Array, "B T-1"]:
    """NLL in nats of every token but a row's first; compiled once per shape.

    On a mesh the rows lie along its data axes, where these divide them.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    if lm.mesh is not None:
        tokens = jax.device_put(tokens, sharding(lm.mesh, ("batch", None), tokens.shape))
    return _nll(lm.config, lm.params, tokens, freqs)


def batched_nll(
    lm: Decoder,
    windows: Integer[np.ndarray, "W T"],
    freqs: rope.Tables,
    pmap: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, Float[np.ndarray, "rows T-1"]]]:
    """token_nll over many windows of one length, a few at a time.

    Batches are powers of two up to tokens_per_batch tokens, padded by repeating the last window, so that
    few shapes are compiled.

    Args:
        lm: the decoder.
        windows: token ids.
        freqs: the table.
        pmap: split each batch over the local devices, with the weights copied to each.
        tokens_per_batch: tokens of a batch; with pmap or a mesh that cuts rows, each part's share.

    Yields:
        the number of the first window of a batch, and the NLLs of its windows.
    """
    cut = 1 if lm.mesh is None else lm.mesh.shape["data"] * lm.mesh.shape["fsdp"]
    devices = jax.local_device_count() if pmap else cut
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
