"""One optimizer step as a pure function: loss, gradients in micro-batches, update, metrics."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Weights, head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.parallel.mesh import constrain
from resonance_jax.rope import Tables
from resonance_jax.train.state import TrainState

Batch = Mapping[str, Int[Array | np.ndarray, "B _"]]
"""Rows to train on, by name:

tokens: i32[B, T].
targets (optional): i32[B, T], target t is predicted at position t-1, -100 is not scored; default: tokens.
    With T+1 of them the last token predicts too.
segment_ids (optional): i32[B, T], the document that each token belongs to. Tokens see their own document
    only, and without targets the last token of one does not predict the first token of the next.
"""

METRICS: tuple[str, ...] = ("loss", "grad_norm", "update_norm")
"""What a step reports: the loss in nats per token, the norms of its gradient and of its update."""

Metrics = dict[str, Float[Array, "..."]]
"""The METRICS of a step by name, a number each; or arrays of them over steps and runs."""

IGNORE = -100
"""The label of a position that is not scored."""

Trained = PyTree[Float[Array, "..."]]
"""What is trained: the decoder's params, or adapters and what is trained whole beside them."""

Sums: TypeAlias = tuple[Float[Array, ""], Float[Array, ""]]
"""(summed loss, scored positions)."""

ToDecoder = Callable[[Trained], Weights]
"""Makes the decoder's params of what is trained."""


def with_labels(batch: Batch) -> dict[str, Int[Array | np.ndarray, "B T"]]:
    """The batch with `labels` i32[B, T] in place of its targets: label t is what position t predicts.

    On NumPy arrays the labels are NumPy arrays. Every array of the result is as long as `tokens`, so that a
    mesh can cut them all alike. Raises ValueError for another array than Batch names, or of another shape.
    """
    unknown = sorted(batch.keys() - {"tokens", "targets", "segment_ids"})
    if unknown or "tokens" not in batch:
        raise ValueError(
            f"a batch holds tokens, and if need be targets and segment_ids; got {', '.join(sorted(batch))}."
        )
    tokens, segments = batch["tokens"], batch.get("segment_ids")
    targets = batch.get("targets", tokens)
    rows, length = tokens.shape[0], tokens.shape[1]
    if targets.shape not in ((rows, length), (rows, length + 1)):
        raise ValueError(f"targets {list(targets.shape)} do not belong to tokens {[rows, length]}.")
    if segments is not None and segments.shape != (rows, length):
        raise ValueError(f"segment_ids {list(segments.shape)} do not belong to tokens {[rows, length]}.")
    numbers = np if isinstance(targets, np.ndarray) else jnp
    labels = targets[:, 1:]
    labels = numbers.pad(labels, ((0, 0), (0, length - labels.shape[1])), constant_values=IGNORE)
    if segments is None:
        return {"tokens": tokens, "labels": labels}
    if "targets" not in batch:
        crosses = numbers.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)))
        labels = numbers.where(crosses, IGNORE, labels)
    return {"tokens": tokens, "labels": labels, "segment_ids": segments}


def summed_loss(
    config: DecoderConfig,
    params: Weights,
    batch: Batch,
    freqs: Tables,
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(summed negative log-likelihood in nats, number of scored positions) of a batch.

    Both have the dtype promote_types(float32, config.dtype).

    Args:
        config, params: the decoder.
        batch: as Batch says, or what with_labels made of it.
        freqs: the encoding's table, or the tables by layer type.
        key: of dropout; None computes without.
    """
    if "labels" not in batch:
        batch = with_labels(batch)
    x = hidden_states(config, params, batch["tokens"], freqs, segment_ids=batch.get("segment_ids"), key=key)
    # Every position is scored, one without a label against nothing: T stays what a mesh can cut.
    nll = linear_cross_entropy(x, head(config, params), batch["labels"], ignore=IGNORE)
    return nll.sum(), jnp.sum(batch["labels"] != IGNORE).astype(nll.dtype)


def gradients(
    config: DecoderConfig,
    params: Trained,
    batch: Batch,
    freqs: Tables,
    key: Key[Array, ""] | None = None,
    micro: int = 0,
    decoder: ToDecoder | None = None,
) -> tuple[Float[Array, ""], Trained]:
    """Mean loss over all scored positions of the batch, in nats per token, and its gradient.

    Sums and counts are added up first and divided last, so that micro-batches with different numbers of
    scored positions give the whole batch's gradient.

    Args:
        config, params, batch, freqs: see summed_loss; params is what is trained.
        key: of dropout; None computes without.
        micro: rows in a micro-batch; 0 takes the whole batch at once.
        decoder: makes the decoder's params of `params`, where something else is trained (adapters).

    Raises:
        ValueError: micro does not divide the rows.
    """
    decoder = decoder or (lambda params: params)

    def loss(params: Trained, rows: Batch, key: Key[Array, ""] | None) -> Sums:
        return summed_loss(config, decoder(params), rows, freqs, key)

    rows = batch["tokens"].shape[0]
    if micro in (0, rows):
        (total, count), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return _mean(total, count, grads)
    if rows % micro:
        raise ValueError(f"a batch of {rows} rows cannot be cut in micro-batches of {micro}.")
    cut = lambda x: x.reshape(rows // micro, micro, *x.shape[1:])
    labelled = batch if "labels" in batch else with_labels(batch)
    pieces = jax.tree.map(lambda x: constrain(cut(x), (None, "batch", "time")), labelled)
    keys = None if key is None else jax.random.split(key, rows // micro)
    # Each layer's gradient is added where the sums lie: those of a micro-batch are never there as a whole.
    grads = jax.tree.map(lambda x: jax.new_ref(jnp.zeros_like(x)), params)

    def add(sums: Sums, piece: tuple[Batch, Key[Array, ""] | None]) -> tuple[Sums, None]:
        total, backward, count = jax.vjp(lambda params: loss(params, *piece), params, has_aux=True)
        cast(Any, backward).with_refs(grads)(jnp.ones_like(total))  # jax.vjp states no more than a function
        return (sums[0] + total, sums[1] + count), None

    wide = jnp.promote_types(jnp.float32, config.dtype)
    zero = jnp.zeros((), wide)
    (total, count), _ = jax.lax.scan(add, (zero, zero), (pieces, keys))
    return _mean(total, count, jax.tree.map(jax.freeze, grads))


def _mean(
    total: Float[Array, ""], count: Float[Array, ""], grads: Trained
) -> tuple[Float[Array, ""], Trained]:
    return total / count, jax.tree.map(lambda g: g / count.astype(g.dtype), grads)


def train_step(
    config: DecoderConfig,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    freqs: Tables,
    micro: int = 0,
    decoder: ToDecoder | None = None,
) -> tuple[TrainState, Metrics]:
    """The next state and the step's METRICS; arguments as those of `gradients`."""
    # Adapters have a dropout of their own.
    key = jax.random.fold_in(state.key, state.step) if config.dropout or decoder else None
    loss, grads = gradients(config, state.params, batch, freqs, key, micro, decoder)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = optax.global_norm(grads), optax.global_norm(updates)
    metrics: Metrics = dict(zip(METRICS, (loss, *norms), strict=True))
    return TrainState(params, opt_state, state.step + 1, state.key), metrics
