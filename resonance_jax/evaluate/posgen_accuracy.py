"""PosGen's metric: teacher-forced accuracy, in distribution and beyond (Resonance RoPE, section 5).

The model reads [EOS] and the true tokens, and predicts each next one; nothing is generated. Tokens are
counted from 0 without [EOS]; those from number `order` = far + near on are scored. Tokens before the training
length are in distribution (ID), tokens from it on are not (OOD): 4 … 63 and 64 … 255 in the paper.

`score_runs` scores trained runs, `evaluator` does so during a training, `curve` reads what it found.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float64, Int, Integer, Shaped

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Params, forward

REFERENCE_BATCH = 64
"""Rows of a batch in the published code, whose validation loss averages the means of batches."""


class Accuracy(NamedTuple):
    """Shares (0 … 1) of the tokens predicted right: below the training length, and from it on."""

    id: Float64[np.ndarray, "*runs"]
    ood: Float64[np.ndarray, "*runs"]


class SetScores(TypedDict):
    """What an evaluation keeps of one set of `rows` sequences.

    Attributes:
        rows: how many sequences there are.
        loss: `[run][table]` in nats per token.
        hits: `[run][table][token]`, how many rows were right at each token.
    """

    rows: int
    loss: list[list[float]]
    hits: list[list[list[int]]]


class Curve(TypedDict):
    """One run under one table over all evaluations, as plain numbers (shares and nats).

    Attributes:
        val_loss: the validation loss at each evaluation, in nats per token.
        val_id, val_ood, test_id, test_ood: the accuracy at each evaluation, in and out of distribution.
        best: the number of the evaluation that the release would have tested, chosen by `val_id`.
        by_position: the share of test rows that are right at each token, at the evaluation "best" and at the
            "last" one.
    """

    val_loss: list[float]
    val_id: list[float]
    val_ood: list[float]
    test_id: list[float]
    test_ood: list[float]
    best: int
    by_position: dict[str, list[float]]


def accuracy(hits: Shaped[np.ndarray, "*runs tokens"], rows: int, order: int, train_length: int) -> Accuracy:
    """ID and OOD accuracy of `hits`, which says how many of `rows` rows were right at each scored token."""
    share = np.asarray(hits, np.float64) / rows
    boundary = train_length - order
    return Accuracy(
        np.asarray(share[..., :boundary].mean(axis=-1)), np.asarray(share[..., boundary:].mean(axis=-1))
    )


def validation_loss(
    row_losses: Float[np.ndarray, "*runs rows"], batch: int = REFERENCE_BATCH
) -> Float64[np.ndarray, "*runs"]:
    """The published validation loss: the mean over batches of their mean loss, in nats per token.

    Where `batch` does not divide the rows, those of the last batch weigh more.
    """
    rows = np.asarray(row_losses, np.float64)
    pieces = [rows[..., i : i + batch].mean(axis=-1) for i in range(0, rows.shape[-1], batch)]
    return np.asarray(np.mean(pieces, axis=0))


def best_epoch(id_accuracy: Sequence[float]) -> int:
    """Index of the checkpoint that the release tests: the first one at the maximum of ID accuracy."""
    return int(np.argmax(np.asarray(id_accuracy)))


def score(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    freqs: rope.Frequencies,
    order: int,
) -> tuple[Bool[Array, "B T-1-{order}"], Float[Array, "B"]]:
    """One run: whether each scored token is predicted right, and each row's loss in nats per token."""
    # The last token is dropped: nothing follows it that could be predicted. 256 positions, not 257.
    logits = forward(config, params, tokens[:, :-1], freqs)[:, order:]
    targets = tokens[:, order + 1 :]
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    predicted = jnp.argmax(logits, axis=-1)
    return predicted == targets, (jax.nn.logsumexp(logits, axis=-1) - at_target).mean(axis=-1)


@functools.lru_cache(maxsize=16)
def _program(config: DecoderConfig, mesh: Mesh, order: int) -> Callable[..., tuple[Array, Array]]:
    """jitted (params [E], tokens [blocks, b, 1 + length], freqs [E]) -> hits [E, blocks, b, …], losses."""

    def local(
        params: Params, tokens: Int[Array, "blocks b columns"], freqs: rope.Frequencies
    ) -> tuple[Array, Array]:
        one = lambda run: jax.lax.map(lambda rows: score(config, run[0], rows, run[1], order), tokens)
        return jax.lax.map(one, (params, freqs))

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("runs"), P(), P("runs")),
        out_specs=P("runs"),
        check_vma=False,
    )
    return jax.jit(sharded)


def score_runs(
    config: DecoderConfig,
    params: Params,
    tokens: Integer[np.ndarray, "rows T"],
    freqs: Sequence[rope.Frequencies],
    order: int,
    block: int = 64,
) -> tuple[Int[np.ndarray, "E T-1-{order}"], Float[np.ndarray, "E rows"]]:
    """Score E runs, each under its own table, in one compiled program, on the devices where they lie.

    Args:
        config: the decoder.
        params: the params pytree with axis 0 = run, sharded over a mesh axis "runs" (or on one device).
        tokens: the sequences, [EOS] first.
        freqs: E tables.
        order: the first token that is scored.
        block: rows at a time, which bounds the memory.

    Returns:
        how many rows are right at each scored token, and each row's loss in nats per token.

    Raises:
        ValueError: when the tables' rotary sizes differ.
    """
    sizes = sorted({2 * len(table.wavelength) for table in freqs})
    if len(sizes) > 1:
        raise ValueError(f"runs of one program need encodings of one rotary size, got {sizes}.")
    sharding = jax.tree.leaves(params)[0].sharding
    mesh = (
        sharding.mesh if isinstance(sharding, NamedSharding) else Mesh(list(sharding.device_set), ("runs",))
    )
    rows = len(tokens)
    blocks = -(-rows // min(block, rows))
    size = -(-rows // blocks)
    padded = np.asarray(tokens)[np.minimum(np.arange(blocks * size), rows - 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *freqs)
    right, losses = _program(config, mesh, order)(params, padded.reshape(blocks, size, -1), stacked)
    right, losses = (np.asarray(x).reshape(len(freqs), blocks * size, *x.shape[3:]) for x in (right, losses))
    return right[:, :rows].sum(axis=1), losses[:, :rows]


def evaluator(
    config: DecoderConfig,
    sets: Mapping[str, Integer[np.ndarray, "_ _"]],
    tables: Sequence[Sequence[rope.Frequencies]],
    order: int,
    block: int = 64,
) -> Callable[[Params], dict[str, SetScores]]:
    """A function of params [E] that scores every run on every set under each of the run's tables.

    What it returns are plain numbers, by set; they keep everything that `curve` needs, so that no parameters
    have to be kept for them.

    Args:
        config: the decoder.
        sets: by name, sequences [rows, 1 + length].
        tables: those of each run; a run may have more of them than another.
        order, block: as for `score_runs`.
    """
    most = max(map(len, tables))
    # Column j holds the j-th table of every run; a run with fewer tables repeats its last one.
    columns = [[own[min(j, len(own) - 1)] for own in tables] for j in range(most)]

    def evaluate(params: Params) -> dict[str, SetScores]:
        results: dict[str, SetScores] = {}
        for name, tokens in sets.items():
            scores = [score_runs(config, params, tokens, column, order, block) for column in columns]
            losses = [validation_loss(losses) for _, losses in scores]
            results[name] = {
                "rows": len(tokens),
                "loss": [[float(losses[j][e]) for j in range(len(own))] for e, own in enumerate(tables)],
                "hits": [[scores[j][0][e].tolist() for j in range(len(own))] for e, own in enumerate(tables)],
            }
        return results

    return evaluate


def curve(
    evaluations: Sequence[Mapping[str, SetScores]], run: int, table: int, order: int, train_length: int
) -> Curve:
    """One run under one of its tables over all evaluations.

    evaluations: the results of `evaluator` for the sets "val" and "test", in order.
    """
    shares, parts = {}, {}
    for name in ("val", "test"):
        rows = evaluations[0][name]["rows"]
        shares[name] = np.asarray([e[name]["hits"][run][table] for e in evaluations]) / rows
        parts[name] = accuracy(shares[name], 1, order, train_length)
    best = best_epoch(parts["val"].id.tolist())
    return {
        "val_loss": [e["val"]["loss"][run][table] for e in evaluations],
        "val_id": parts["val"].id.tolist(),
        "val_ood": parts["val"].ood.tolist(),
        "test_id": parts["test"].id.tolist(),
        "test_ood": parts["test"].ood.tolist(),
        "best": best,
        "by_position": {
            "best": shares["test"][best].tolist(),
            "last": shares["test"][-1].tolist(),
        },
    }
