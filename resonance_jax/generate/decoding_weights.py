"""Weights laid out for decoding on a CPU, which reads all of them for every token."""

from typing import cast

import jax
from jaxtyping import Array, Int

from resonance_jax.model import DecoderConfig
from resonance_jax.model.decoder import Weights
from resonance_jax.model.lowering import target
from resonance_jax.parallel.mesh import automatic_axes

MOST = 4 << 30
"""Bytes of layers that are copied at most: a larger model should not need its memory twice."""


def for_decoding(config: DecoderConfig, params: Weights, tokens: Int[Array, "B"]) -> Weights:
    """The same weights for a loop over tokens; for use inside a trace, before the loop.

    On one CPU device each layer's weights are cut out of their stack, once for the whole loop: a copy of all
    of them. A scan over the stack would copy each layer's weights for every token before it multiplies with
    them, which takes longer than the product. Elsewhere, and above MOST bytes, nothing is changed.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params["layers"]))
    if target().platform != "cpu" or automatic_axes(tokens) or size > MOST:
        return params
    cut = lambda number: jax.tree.map(lambda stack: stack[number], params["layers"])
    # Without the barrier the loop would cut them anew.
    layers = jax.lax.optimization_barrier(tuple(map(cut, range(config.n_layers))))
    return cast(Weights, {**params, "layers": layers})
