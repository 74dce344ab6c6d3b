"""One optimizer step as a pure function: loss, gradients in micro-batches, update, metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.parallel.mesh import constrain
from resonance_jax.rope import Frequencies
from resonance_jax.train.state import TrainState

Batch = dict[str, jax.Array]
"""tokens i32[B, T]; optional targets i32[B, T] (default tokens; -100: not scored; position t is predicted
at t-1; with T+1 of them the last token predicts too), segment_ids i32[B, T]."""

METRICS = ("loss", "grad_norm", "update_norm")
"""What a step reports: the loss in nats a token and the norms of its gradient and update, a number each."""


def summed_loss(config: DecoderConfig, params, batch: Batch, freqs: Frequencies, key=None):
    """Sum of next-token NLL in nats and the number of scored tokens, both f32[]."""
    tokens = batch["tokens"]
    x = hidden_states(config, params, tokens, freqs, segment_ids=batch.get("segment_ids"), key=key)
    # Every position is scored, one without a target against nothing: T stays what a mesh can cut.
    targets = batch.get("targets", tokens)[:, 1:]
    missing = tokens.shape[1] - targets.shape[1]
    targets = jnp.pad(targets, ((0, 0), (0, missing)), constant_values=-100)
    nll = linear_cross_entropy(x, head(config, params), targets)
    return nll.sum(), (targets != -100).sum().astype(nll.dtype)


def gradients(
    config: DecoderConfig, params, batch: Batch, freqs: Frequencies, key=None, micro: int = 0, decoder=None
):
    """Mean loss over all scored tokens of the batch and its gradient.

    micro: rows a micro-batch (0: the whole batch at once). Sums and counts are added up first and divided
    last, so that micro-batches with different numbers of scored tokens give the full batch's gradient.
    decoder: params -> the decoder's params, where what is trained is something else (adapters).
    """
    decoder = decoder or (lambda params: params)
    value_and_grad = jax.value_and_grad(
        lambda params, rows, key: summed_loss(config, decoder(params), rows, freqs, key), has_aux=True
    )
    rows = batch["tokens"].shape[0]
    if micro in (0, rows):
        (total, count), grads = value_and_grad(params, batch, key)
    else:
        if rows % micro:
            raise ValueError(f"a batch of {rows} rows cannot be cut in micro-batches of {micro}.")
        cut = lambda x: x.reshape(rows // micro, micro, *x.shape[1:])
        pieces = jax.tree.map(lambda x: constrain(cut(x), (None, "batch", "time")), batch)
        keys = None if key is None else jax.random.split(key, rows // micro)

        def add(carry, piece):
            (total, count), grads = value_and_grad(params, *piece)
            return jax.tree.map(jnp.add, carry, (total, count, grads)), None

        zero = jax.tree.map(jnp.zeros_like, params)
        wide = jnp.promote_types(jnp.float32, config.dtype)
        start = (jnp.zeros((), wide), jnp.zeros((), wide), zero)
        (total, count, grads), _ = jax.lax.scan(add, start, (pieces, keys))
    return total / count, jax.tree.map(lambda g: g / count.astype(g.dtype), grads)


def train_step(
    config: DecoderConfig,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    freqs: Frequencies,
    micro: int = 0,
    decoder: Callable | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """The next state and the step's METRICS; arguments as `gradients`'."""
    # Adapters have a dropout of their own.
    key = jax.random.fold_in(state.key, state.step) if config.dropout or decoder else None
    loss, grads = gradients(config, state.params, batch, freqs, key, micro, decoder)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = dict(zip(METRICS, (loss, optax.global_norm(grads), optax.global_norm(updates)), strict=True))
    return TrainState(params, opt_state, state.step + 1, state.key), metrics
