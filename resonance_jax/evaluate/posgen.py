"""PosGen's metric: teacher-forced accuracy, in distribution and beyond (Resonance RoPE, section 5).

The model reads [EOS] and the true tokens and tells each next one; nothing is generated. Tokens (counted from
0, [EOS] not among them) are scored from number `order` = far + near on. In distribution (ID) are those before
the training length, out of distribution (OOD) those from it on: 4 … 63 and 64 … 255 in the paper.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import forward

REFERENCE_BATCH = 64
"""Rows in the batches whose mean losses the published validation loss averages."""


class Accuracy(NamedTuple):
    """Shares (0 … 1) of the tokens told right: below the training length, and from it on."""

    id: np.ndarray
    ood: np.ndarray


def accuracy(hits: np.ndarray, rows: int, order: int, train_length: int) -> Accuracy:
    """ID and OOD accuracy of hits [..., length - order]: how many of `rows` rows were right at each token."""
    share = np.asarray(hits, np.float64) / rows
    boundary = train_length - order
    return Accuracy(share[..., :boundary].mean(axis=-1), share[..., boundary:].mean(axis=-1))


def validation_loss(row_losses: np.ndarray, batch: int = REFERENCE_BATCH) -> np.ndarray:
    """f64[...]: mean over batches of their mean loss, as published; row_losses [..., rows] in nats a token.

    Where `batch` does not divide the rows, those of the last batch weigh more.
    """
    rows = np.asarray(row_losses, np.float64)
    pieces = [rows[..., i : i + batch].mean(axis=-1) for i in range(0, rows.shape[-1], batch)]
    return np.mean(pieces, axis=0)


def best_epoch(id_accuracy: Sequence[float]) -> int:
    """Index of the checkpoint that the release tests: the first one at the maximum of ID accuracy."""
    return int(np.argmax(np.asarray(id_accuracy)))


def score(config: DecoderConfig, params, tokens: jax.Array, freqs: rope.Frequencies, order: int):
    """One run on i32[B, 1 + length]: (hits bool[B, length - order], loss [B] in nats a token)."""
    # What follows the last token is nobody's business: 256 positions, not 257.
    logits = forward(config, params, tokens[:, :-1], freqs)[:, order:]
    targets = tokens[:, order + 1 :]
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    told = jnp.argmax(logits, axis=-1)
    return told == targets, (jax.nn.logsumexp(logits, axis=-1) - at_target).mean(axis=-1)


@functools.lru_cache(maxsize=16)
def _program(config: DecoderConfig, mesh: Mesh, order: int):
    """jitted (params [E], tokens [blocks, b, 1 + length], freqs [E]) -> hits [E, blocks, b, …], losses."""

    def local(params, tokens, freqs):
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
    params: Any,
    tokens: np.ndarray,
    freqs: Sequence[rope.Frequencies],
    order: int,
    block: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """E runs, each under its own table, in one compiled program, where they lie on the devices.

    params: the params pytree with axis 0 = run, sharded over a mesh axis "runs" (or on one device). tokens
    i32[rows, 1 + length], [EOS] first. freqs: E tables. block: rows at a time, which bounds the memory.
    Returns the counts of right rows i64[E, length - order] and the loss f32[E, rows] in nats a token. Raises
    ValueError when the tables' rotary sizes differ.
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
    sets: Mapping[str, np.ndarray],
    tables: Sequence[Sequence[rope.Frequencies]],
    order: int,
    block: int = 64,
) -> Callable[[Any], dict[str, Any]]:
    """A function of params [E] that scores every run on every set under each of its tables.

    sets: name -> i32[rows, 1 + length]. tables[e]: those of run e; a run may have more than another. Gives
    {set: {"rows": rows, "loss": [e][table], "hits": [e][table][token]}}: plain numbers, which keep everything
    that accuracy() and best_epoch() need, so that no parameters have to be kept for them.
    """
    most = max(map(len, tables))
    # Column j holds the j-th table of every run; a run that has none repeats its last one.
    columns = [[own[min(j, len(own) - 1)] for own in tables] for j in range(most)]

    def evaluate(params) -> dict[str, Any]:
        results = {}
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
    evaluations: Sequence[Mapping[str, Any]], run: int, table: int, order: int, train_length: int
) -> dict[str, Any]:
    """One run under one of its tables over all evaluations, as plain numbers (shares and nats).

    evaluations: what evaluator() gave for the sets "val" and "test", in order. best: the index that the
    release would have tested, chosen by "val". by_position: the share of test rows right at each token, there
    and at the last evaluation.
    """
    curve: dict[str, Any] = {"val_loss": [e["val"]["loss"][run][table] for e in evaluations]}
    shares = {}
    for name in ("val", "test"):
        rows = evaluations[0][name]["rows"]
        shares[name] = np.asarray([e[name]["hits"][run][table] for e in evaluations]) / rows
        parts = accuracy(shares[name], 1, order, train_length)
        curve |= {f"{name}_id": parts.id.tolist(), f"{name}_ood": parts.ood.tolist()}
    best = best_epoch(curve["val_id"])
    positions = {"best": shares["test"][best].tolist(), "last": shares["test"][-1].tolist()}
    return curve | {"best": best, "by_position": positions}
