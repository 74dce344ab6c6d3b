"""The gated MLP (SwiGLU, GeGLU), with a gradient that holds few arrays [B, T, F] at a time.

Differentiated by itself, a layer that keeps nothing holds six of them at its worst moment: what it recomputes
and its gradients, all at once. Here each is used up before the next is made.
"""

import jax
from jaxtyping import Array, Float

from resonance_jax.model.linear import product

_Weights = tuple[Float[Array, "B T D"], Float[Array, "D F"], Float[Array, "D F"], Float[Array, "F D"]]


def gated(gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"], kind: str) -> Float[Array, "*rows F"]:
    """What goes into the last product.

    Args:
        gate, up: the two products with the input.
        kind: "swiglu" or "geglu".
    """
    return (jax.nn.silu if kind == "swiglu" else jax.nn.gelu)(gate) * up


def _mlp(
    x: Float[Array, "B T D"],
    gate: Float[Array, "D F"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
    kind: str,
) -> Float[Array, "B T D"]:
    return product(gated(product(x, gate), product(x, up), kind), down)


def _forward(
    x: Float[Array, "B T D"],
    gate: Float[Array, "D F"],
    up: Float[Array, "D F"],
    down: Float[Array, "F D"],
    kind: str,
) -> tuple[Float[Array, "B T D"], _Weights]:
    return _mlp(x, gate, up, down, kind), (x, gate, up, down)


def _backward(kind: str, saved: _Weights, d_out: Float[Array, "B T D"]) -> _Weights:
    x, gate, up, down = saved
    g, of_gate = jax.vjp(product, x, gate)
    u, of_up = jax.vjp(product, x, up)
    h = gated(g, u, kind)
    (d_down,) = jax.vjp(lambda down: product(h, down), down)[1](d_out)
    # h is used up before its gradient is there.
    g, u, d_out, d_down = jax.lax.optimization_barrier((g, u, d_out, d_down))
    (d_h,) = jax.vjp(lambda h: product(h, down), h)[1](d_out)
    d_g, d_u = jax.lax.optimization_barrier(jax.vjp(lambda g, u: gated(g, u, kind), g, u)[1](d_h))
    (d_x, d_gate), (more, d_up) = of_gate(d_g), of_up(d_u)
    return d_x + more, d_gate, d_up, d_down


gated_mlp = jax.custom_vjp(_mlp, nondiff_argnums=(4,))
"""gated_mlp(x, gate, up, down, kind): the MLP of an input and its weights, of which nothing but x is kept for
the gradient; kind as for `gated`."""
gated_mlp.defvjp(_forward, _backward)
