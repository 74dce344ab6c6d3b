"""A weight that lies cut over the devices of `fsdp`, gathered where it is used; its gradient is cut again.

Left to itself the compiler sends parts of a weight round for each product that it stands in. Gathered, it
travels once for all products of a layer's forward pass, and once for all of its gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from resonance_jax.parallel.mesh import constrain

Axes = tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered_weight(weight: Float[Array, "I O"], axes: Axes, dtype: DTypeLike) -> Float[Array, "I O"]:
    """The weight whole along `embed`, in the dtype that it is sent in. Without a mesh it is only cast.

    Args:
        weight: of one layer.
        axes: the logical axis of each dimension.
        dtype: of the products that it is used in.
    """
    return constrain(weight.astype(dtype), tuple(None if axis == "embed" else axis for axis in axes))


def _forward(
    weight: Float[Array, "I O"], axes: Axes, dtype: DTypeLike
) -> tuple[Float[Array, "I O"], Float[Array, "0"]]:
    return gathered_weight(weight, axes, dtype), jnp.zeros(0, weight.dtype)


def _backward(
    axes: Axes, _: DTypeLike, like: Float[Array, "0"], gradient: Float[Array, "I O"]
) -> tuple[Float[Array, "I O"]]:
    return (constrain(gradient, axes).astype(like.dtype),)


gathered_weight.defvjp(_forward, _backward)
