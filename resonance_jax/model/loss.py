"""Cross entropy of a linear head without its logits: chunk by chunk, recomputed for the gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

LOGITS_AT_ONCE = 1 << 22


def linear_cross_entropy(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    ignore: int = -100,
) -> Array:
    """Negative log likelihood, in nats, of each target under softmax(hidden @ head).

    Args:
        hidden: [M, D] or [B, T, D].
        head: [D, V].
        targets: i32, hidden's leading shape.
        chunk: positions scored at once; default: so that about 4 million logits are alive.
        z_loss: adds z_loss * logsumexp(logits)**2.
        ignore: the target value whose positions give 0 and no gradient.

    Returns:
        f32 (f64 for f64 input), targets' shape.
    """
    D, V = head.shape
    M = targets.size
    chunk = min(M, chunk or max(16, LOGITS_AT_ONCE // V))
    pad = -M % chunk
    rows = jnp.pad(hidden.reshape(M, D), ((0, pad), (0, 0)))
    wanted = jnp.pad(targets.reshape(M), (0, pad), constant_values=ignore)
    nll = _nll(rows.reshape(-1, chunk, D), head, wanted.reshape(-1, chunk), z_loss, ignore)
    return nll.reshape(-1)[:M].reshape(targets.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _nll(hidden, head, targets, z_loss, ignore):
    return _forward(hidden, head, targets, z_loss, ignore)[0]


def _logits(rows, head):
    wide = jnp.promote_types(jnp.float32, rows.dtype)
    return jnp.einsum("cd,dv->cv", rows, head, preferred_element_type=wide)


def _is_target(targets, V):
    return targets[:, None] == jnp.arange(V, dtype=targets.dtype)[None, :]


def _forward(hidden, head, targets, z_loss, ignore):
    def score(_, chunk):
        rows, wanted = chunk
        logits = _logits(rows, head)
        lse = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.sum(jnp.where(_is_target(wanted, head.shape[1]), logits, 0), axis=-1)
        nll = jnp.where(wanted == ignore, 0, lse - target + jnp.asarray(z_loss, lse.dtype) * lse**2)
        return None, (nll, lse)

    _, (nll, lse) = lax.scan(score, None, (hidden, targets))
    return nll, (hidden, head, targets, lse)


def _backward(z_loss, ignore, saved, cotangent):
    hidden, head, targets, lse = saved

    def recompute(d_head, chunk):
        rows, wanted, lse, g = chunk
        g = jnp.where(wanted == ignore, 0, g)
        p = jnp.exp(_logits(rows, head) - lse[:, None])
        d_logits = (g * (1 + 2 * jnp.asarray(z_loss, g.dtype) * lse))[:, None] * p
        d_logits = d_logits - jnp.where(_is_target(wanted, head.shape[1]), g[:, None], 0)
        d_logits = d_logits.astype(rows.dtype)
        d_rows = jnp.einsum("cv,dv->cd", d_logits, head, preferred_element_type=p.dtype).astype(rows.dtype)
        return d_head + jnp.einsum("cd,cv->dv", rows, d_logits, preferred_element_type=p.dtype), d_rows

    d_head, d_hidden = lax.scan(
        recompute, jnp.zeros(head.shape, lse.dtype), (hidden, targets, lse, cotangent)
    )
    return d_hidden, d_head.astype(head.dtype), np.zeros(targets.shape, jax.dtypes.float0)


_nll.defvjp(_forward, _backward)
