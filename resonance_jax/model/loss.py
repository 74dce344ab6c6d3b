"""Cross entropy of a linear head without its logits: one tile of positions x vocabulary at a time.

The log-sum-exp is merged from the tiles; the gradient recomputes them. One tile of logits is alive at a
time, so memory does not grow with the vocabulary beyond the gradient [D, V] itself.
"""

import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from resonance_jax.parallel.mesh import RULES, automatic_axes

TILE = 1 << 22
"""About how many logits are alive at a time."""
POSITIONS = 4096
"""About how many positions are scored at a time: enough that adding to the head's gradient costs little."""


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
        head: the output weight. Sharded over V it stays so (vocabulary parallel).
        targets: 0 … V-1 or `ignore`; any other number gives NaN.
        chunk: about how many positions are scored at a time; default 4096, fewer for a sharded vocabulary.
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
    D, V = head.shape
    if targets.size == 0:
        return jnp.zeros(targets.shape, np.promote_types(np.float32, hidden.dtype))
    rows = hidden.reshape(-1, *hidden.shape[-2:])
    B, T, _ = rows.shape
    shards = _vocabulary_shards(head)
    if chunk is None:
        chunk = POSITIONS if shards == 1 else TILE * shards // V
    steps = min(T, -(-B * T // chunk))
    per_step = -(-T // steps)
    width = V if shards > 1 else min(V, max(128, TILE // (B * per_step)))
    pad = ((0, 0), (0, steps * per_step - T))
    # A step takes every steps-th position: shards of B and of T stay on their devices.
    rows = jnp.pad(rows, (*pad, (0, 0))).reshape(B, per_step, steps, D)
    wanted = jnp.pad(targets.astype(jnp.int32).reshape(B, T), pad, constant_values=ignore)
    options = _Options(width, float(z_loss), ignore)
    nll = _tiled_nll(rows, head, wanted.reshape(B, per_step, steps), options)
    return nll.reshape(B, -1)[:, :T].reshape(targets.shape)


class _Options(NamedTuple):
    """width: vocabulary entries in a tile. z_loss, ignore: as for `linear_cross_entropy`."""

    width: int
    z_loss: float
    ignore: int


_Saved = tuple[
    Float[Array, "B c steps D"], Float[Array, "D V"], Int[Array, "B c steps"], Float[Array, "B c steps"]
]
"""hidden, head, targets and the log-sum-exp of the logits."""
_Tile = tuple[Int[Array, ""], Int[Array, ""]]
"""Where a tile of the vocabulary starts, and its first column that no tile before it has had."""


def _vocabulary_shards(head: Float[Array, "D V"]) -> int:
    """How many parts the compiler may cut head's V into."""
    axes = automatic_axes(head)
    shards = math.prod(axes.get(name, 1) for name in RULES["vocab"])
    return shards if head.shape[1] % shards == 0 else 1


def _nll(
    hidden: Float[Array, "B c steps D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B c steps"],
    options: _Options,
) -> Float[Array, "B c steps"]:
    """The loss of every position; a step of the scan takes one slice along `steps`."""
    return _forward(hidden, head, targets, options)[0]


def _forward(
    hidden: Float[Array, "B c steps D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B c steps"],
    options: _Options,
) -> tuple[Float[Array, "B c steps"], _Saved]:
    wide = np.promote_types(np.float32, hidden.dtype)
    lowest = jnp.finfo(wide).min / 4

    def score(_: None, step: Int[Array, ""]) -> tuple[None, tuple[Float[Array, "m"], Float[Array, "m"]]]:
        rows, wanted = _rows(hidden, step), _rows(targets, step)

        def merge(
            state: tuple[Float[Array, "m"], Float[Array, "m"]], tile: _Tile
        ) -> tuple[tuple[Float[Array, "m"], Float[Array, "m"]], None]:
            lse, target = state
            logits, columns, fresh = _logits(rows, head, tile, options.width)
            logits = jnp.where(fresh, logits, lowest)
            lse = jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=1))
            is_target = (columns == wanted[:, None]) & fresh
            return (lse, target + jnp.sum(jnp.where(is_target, logits, 0), axis=1)), None

        state = jnp.full(wanted.shape, lowest, wide), jnp.zeros(wanted.shape, wide)
        (lse, target), _ = lax.scan(merge, state, cast(_Tile, _tiles(head, options.width)))
        nll = lse - target
        if options.z_loss:
            nll = nll + options.z_loss * lse**2
        nll = jnp.where((wanted >= 0) & (wanted < head.shape[1]), nll, jnp.nan)
        return None, (jnp.where(wanted == options.ignore, 0, nll), lse)

    _, (nll, lse) = lax.scan(score, None, jnp.arange(targets.shape[2]))
    nll, lse = _unstep(nll, targets.shape), _unstep(lse, targets.shape)
    return nll, (hidden, head, targets, lse)


def _backward(
    options: _Options, saved: _Saved, d_nll: Float[Array, "B c steps"]
) -> tuple[Float[Array, "B c steps D"], Float[Array, "D V"], None]:
    hidden, head, targets, lse = saved
    wide = lse.dtype

    def recompute(
        d_head: Float[Array, "D V"], step: Int[Array, ""]
    ) -> tuple[Float[Array, "D V"], Float[Array, "m D"]]:
        rows, wanted, norm = _rows(hidden, step), _rows(targets, step), _rows(lse, step)
        d_target = jnp.where(wanted == options.ignore, 0, _rows(d_nll, step))
        d_norm = d_target * (1 + 2 * options.z_loss * norm) if options.z_loss else d_target

        def accumulate(
            gradients: tuple[Float[Array, "m D"], Float[Array, "D V"]], tile: _Tile
        ) -> tuple[tuple[Float[Array, "m D"], Float[Array, "D V"]], None]:
            d_rows, d_head = gradients
            logits, columns, fresh = _logits(rows, head, tile, options.width)
            d_logits = jnp.exp(logits - norm[:, None]) * d_norm[:, None]
            d_logits -= jnp.where(columns == wanted[:, None], d_target[:, None], 0)
            d_logits = jnp.where(fresh, d_logits, 0).astype(rows.dtype)
            part = _columns(head, tile, options.width).astype(rows.dtype)
            d_rows += _dot("mv,dv->md", d_logits, part, wide)
            d_part = _columns(d_head, tile, options.width) + _dot("md,mv->dv", rows, d_logits, wide)
            return (d_rows, lax.dynamic_update_slice_in_dim(d_head, d_part, tile[0], 1)), None

        state = jnp.zeros(rows.shape, wide), d_head
        (d_rows, d_head), _ = lax.scan(accumulate, state, cast(_Tile, _tiles(head, options.width)))
        return d_head, d_rows.astype(rows.dtype)

    d_head, d_rows = lax.scan(recompute, jnp.zeros(head.shape, wide), jnp.arange(targets.shape[2]))
    return _unstep(d_rows, hidden.shape), d_head.astype(head.dtype), None


_tiled_nll = jax.custom_vjp(_nll, nondiff_argnums=(3,))
_tiled_nll.defvjp(_forward, _backward)


def _rows(x: Shaped[Array, "B c steps *rest"], step: Int[Array, ""]) -> Shaped[Array, "B*c *rest"]:
    """One step's positions, flat."""
    x = lax.dynamic_index_in_dim(x, step, 2, keepdims=False)
    return x.reshape(-1, *x.shape[2:])


def _unstep(x: Shaped[Array, "steps m *rest"], shape: tuple[int, ...]) -> Shaped[Array, "B c steps *rest"]:
    """The steps' positions in their places again; `shape` begins with [B, c, steps]."""
    return jnp.moveaxis(x.reshape(shape[2], shape[0], shape[1], *shape[3:]), 0, 2)


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
