"""Cross entropy of a linear head without its logits: one tile of positions x vocabulary at a time.

The log-sum-exp is merged from the tiles; the gradient recomputes them. One tile of logits is alive at a
time, so memory does not grow with the vocabulary beyond the gradient [D, V] itself.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from resonance_jax.model.loss_sharding import LossSharding, loss_sharding

TILE = 1 << 22
"""About how many logits are alive at a time on a device."""
POSITIONS = 4096
"""About how many positions a device scores at a time: adding to the head's gradient then costs little."""


def linear_cross_entropy(
    hidden: Float[Array, "*rows D"],
    head: Float[Array, "D V"],
    targets: Integer[Array | np.ndarray, "*rows"],
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    ignore: int = -100,
) -> Float[Array, "*rows"]:
    """Negative log-likelihood in nats of every target under softmax(hidden @ head).

    Args:
        hidden: [M, D] or [B, T, D]; products are computed in its dtype, not in head's.
        head: the output weight. Sharded over V it stays so (vocabulary parallel); over D it is gathered once.
        targets: 0 … V-1 or `ignore`; any other number gives NaN.
        chunk: about how many positions a device scores at a time; default 4096.
        z_loss: adds z_loss * logsumexp(logits)**2 (PaLM, Chowdhery et al. 2022, section 5).
        ignore: the target whose positions give 0 and no gradient.

    Returns:
        The loss of every target, in promote_types(float32, hidden.dtype).

    Raises:
        ValueError: shapes that do not fit, or targets that are not integers.
    """
    if hidden.ndim not in (2, 3) or head.ndim != 2 or hidden.shape[-1] != head.shape[0]:
        raise ValueError(
            f"expected hidden [M, D] or [B, T, D] and head [D, V], got {hidden.shape} and {head.shape}."
        )
    if targets.shape != hidden.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"expected integer targets {hidden.shape[:-1]}, got {targets.dtype} {targets.shape}."
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, got {chunk}.")
    if targets.size == 0:
        return jnp.zeros(targets.shape, np.promote_types(np.float32, hidden.dtype))
    rows = hidden.reshape(-1, *hidden.shape[-2:])
    options = _Options(POSITIONS if chunk is None else chunk, float(z_loss), ignore)
    nll = _tiled_nll(rows, head, jnp.asarray(targets, jnp.int32).reshape(rows.shape[:2]), options)
    return nll.reshape(targets.shape)


class _Options(NamedTuple):
    """chunk, z_loss, ignore: as for `linear_cross_entropy`."""

    chunk: int
    z_loss: float
    ignore: int


_Saved = tuple[Float[Array, "B T D"], Float[Array, "D V"], Int[Array, "B T"], Float[Array, "B T"]]
"""hidden, head, targets and the log-sum-exp of the logits."""
_Tile = tuple[Int[Array, ""], Int[Array, ""]]
"""Where a tile of the vocabulary starts, and its first column that no tile before it has had."""


def _nll(
    hidden: Float[Array, "B T D"], head: Float[Array, "D V"], targets: Int[Array, "B T"], options: _Options
) -> Float[Array, "B T"]:
    """The loss of every position."""
    return _forward(hidden, head, targets, options)[0]


def _forward(
    hidden: Float[Array, "B T D"], head: Float[Array, "D V"], targets: Int[Array, "B T"], options: _Options
) -> tuple[Float[Array, "B T"], _Saved]:
    cut = loss_sharding(hidden, head)
    score = cut.mapped(
        functools.partial(_score, options=options, cut=cut),
        (cut.hidden, cut.head, cut.positions),
        (cut.positions, cut.positions),
    )
    nll, lse = score(hidden, head, targets)
    return nll, (hidden, head, targets, lse)


def _backward(
    options: _Options, saved: _Saved, d_nll: Float[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Float[Array, "D V"], None]:
    hidden, head = saved[:2]
    cut = loss_sharding(hidden, head)
    differentiate = cut.mapped(
        functools.partial(_gradients, options=options, cut=cut),
        (cut.hidden, cut.head, cut.positions, cut.positions, cut.positions),
        (cut.hidden, cut.head_gradient),
    )
    d_hidden, d_head = differentiate(*saved, d_nll)
    return d_hidden, d_head.astype(head.dtype), None


def _score(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "part v"],
    targets: Int[Array, "B T"],
    options: _Options,
    cut: LossSharding,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """On one device: the loss of its positions and the log-sum-exp of their logits."""
    head = cut.gathered(head, hidden.dtype)
    steps = _steps(hidden, head, options)
    wide = np.promote_types(np.float32, hidden.dtype)
    lowest = jnp.finfo(wide).min / 4
    rows, wanted = steps.cut(hidden), steps.cut(targets - cut.first_column(head.shape[1]), -1)

    def score(_: None, step: Int[Array, ""]) -> tuple[None, tuple[Float[Array, "m"], Float[Array, "m"]]]:
        x, y = _rows(rows, step), _rows(wanted, step)

        def merge(
            state: tuple[Float[Array, "m"], Float[Array, "m"]], tile: _Tile
        ) -> tuple[tuple[Float[Array, "m"], Float[Array, "m"]], None]:
            lse, target = state
            logits, columns, fresh = _logits(x, head, tile, steps.width)
            logits = jnp.where(fresh, logits, lowest)
            lse = jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=1))
            is_target = (columns == y[:, None]) & fresh
            return (lse, target + jnp.sum(jnp.where(is_target, logits, 0), axis=1)), None

        state = jnp.full(y.shape, lowest, wide), jnp.zeros(y.shape, wide)
        state, _ = lax.scan(merge, state, cast(_Tile, _tiles(head, steps.width)))
        return None, state

    _, (lse, target) = lax.scan(score, None, jnp.arange(steps.parts))
    lse, target = cut.log_sum_exp(lse), cut.over_vocabulary(target)
    lse, target = steps.joined(lse, targets.shape), steps.joined(target, targets.shape)
    nll = lse - target
    if options.z_loss:
        nll = nll + options.z_loss * lse**2
    nll = jnp.where((targets >= 0) & (targets < cut.vocabulary(head.shape[1])), nll, jnp.nan)
    return jnp.where(targets == options.ignore, 0, nll), lse


def _gradients(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "part v"],
    targets: Int[Array, "B T"],
    lse: Float[Array, "B T"],
    d_nll: Float[Array, "B T"],
    options: _Options,
    cut: LossSharding,
) -> tuple[Float[Array, "B T D"], Float[Array, "own v"]]:
    """On one device: the gradients of its positions' hidden states and of its part of the head, which has all
    of D where the devices that cut it have no other positions."""
    head = cut.gathered(head, hidden.dtype)
    steps, wide = _steps(hidden, head, options), lse.dtype
    d_nll = jnp.where(targets == options.ignore, 0, d_nll)
    targets = targets - cut.first_column(head.shape[1])
    rows, wanted, norms, weights = (steps.cut(x) for x in (hidden, targets, lse, d_nll))

    def recompute(
        d_head: Float[Array, "D v"], step: Int[Array, ""]
    ) -> tuple[Float[Array, "D v"], Float[Array, "m D"]]:
        x, y, norm, d_target = (_rows(each, step) for each in (rows, wanted, norms, weights))
        d_norm = d_target * (1 + 2 * options.z_loss * norm) if options.z_loss else d_target

        def accumulate(
            gradients: tuple[Float[Array, "m D"], Float[Array, "D v"]], tile: _Tile
        ) -> tuple[tuple[Float[Array, "m D"], Float[Array, "D v"]], None]:
            d_rows, d_head = gradients
            logits, columns, fresh = _logits(x, head, tile, steps.width)
            d_logits = jnp.exp(logits - norm[:, None]) * d_norm[:, None]
            d_logits -= jnp.where(columns == y[:, None], d_target[:, None], 0)
            d_logits = jnp.where(fresh, d_logits, 0).astype(x.dtype)
            part = _columns(head, tile, steps.width).astype(x.dtype)
            d_rows += _dot("mv,dv->md", d_logits, part, wide)
            d_part = _columns(d_head, tile, steps.width) + _dot("md,mv->dv", x, d_logits, wide)
            return (d_rows, lax.dynamic_update_slice_in_dim(d_head, d_part, tile[0], 1)), None

        state = jnp.zeros(x.shape, wide), d_head
        (d_rows, d_head), _ = lax.scan(accumulate, state, cast(_Tile, _tiles(head, steps.width)))
        return d_head, cut.over_vocabulary(d_rows).astype(x.dtype)

    d_head, d_rows = lax.scan(recompute, jnp.zeros(head.shape, wide), jnp.arange(steps.parts))
    return steps.joined(d_rows, hidden.shape), cut.summed_head(d_head)


_tiled_nll = jax.custom_vjp(_nll, nondiff_argnums=(3,))
_tiled_nll.defvjp(_forward, _backward)


class _Steps(NamedTuple):
    """How positions are scored a part at a time: `parts` of them, `each` positions of every row in one,
    and `width` vocabulary entries in a tile."""

    parts: int
    each: int
    width: int

    def cut(self, x: Shaped[Array, "B T *rest"], fill: int = 0) -> Shaped[Array, "B each parts *rest"]:
        """x by steps; a step takes every parts-th position."""
        pad = ((0, 0), (0, self.parts * self.each - x.shape[1]), *[(0, 0)] * (x.ndim - 2))
        return jnp.pad(x, pad, constant_values=fill).reshape(x.shape[0], self.each, self.parts, *x.shape[2:])

    def joined(self, x: Shaped[Array, "parts m *rest"], shape: tuple[int, ...]) -> Shaped[Array, "B T *rest"]:
        """The steps' results in their places again; `shape` begins with [B, T]."""
        B, T = shape[:2]
        x = jnp.moveaxis(x.reshape(self.parts, B, self.each, *x.shape[2:]), 0, 2)
        return x.reshape(B, -1, *x.shape[3:])[:, :T]


def _steps(hidden: Float[Array, "B T D"], head: Float[Array, "D v"], options: _Options) -> _Steps:
    (B, T, _), V = hidden.shape, head.shape[1]
    parts = min(T, -(-B * T // options.chunk))
    each = -(-T // parts)
    return _Steps(parts, each, min(V, max(128, TILE // (B * each))))


def _rows(x: Shaped[Array, "B each parts *rest"], step: Int[Array, ""]) -> Shaped[Array, "B*each *rest"]:
    """One step's positions, flat."""
    x = lax.dynamic_index_in_dim(x, step, 2, keepdims=False)
    return x.reshape(-1, *x.shape[2:])


def _tiles(
    head: Float[Array, "D V"], width: int
) -> tuple[Int[np.ndarray, "tiles"], Int[np.ndarray, "tiles"]]:
    """The tiles of the vocabulary, for a scan, which hands them on one by one.

    The last one starts early when width does not divide V, so that no padded copy of the head is needed.
    """
    V = head.shape[1]
    first = np.arange(0, V, width, dtype=np.int32)
    return np.minimum(first, V - width), first


def _columns(x: Float[Array, "D V"], tile: _Tile, width: int) -> Float[Array, "D {width}"]:
    """A tile's columns of the head, or of its gradient."""
    return lax.dynamic_slice_in_dim(x, tile[0], width, 1)


def _logits(
    rows: Float[Array, "m D"], head: Float[Array, "D V"], tile: _Tile, width: int
) -> tuple[Float[Array, "m {width}"], Int[Array, "1 {width}"], Bool[Array, "1 {width}"]]:
    """A tile's logits, the numbers of its columns, and which of them no tile before has had."""
    wide = np.promote_types(np.float32, rows.dtype)
    columns = tile[0] + jnp.arange(width, dtype=jnp.int32)[None, :]
    logits = _dot("md,dv->mv", rows, _columns(head, tile, width).astype(rows.dtype), wide)
    return logits, columns, columns >= tile[1]


def _dot(spec: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: np.dtype) -> Float[Array, "..."]:
    return jnp.einsum(spec, x, y, preferred_element_type=dtype)
