"""How the devices of a mesh share a loss: each scores its own positions against its part of the vocabulary.

Left to itself the compiler gathers the head anew for every tile of the loss, and adds its gradient up over
the devices as often; here both travel once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from resonance_jax.parallel.mesh import AXES, automatic_axes, sharding

Axes = tuple[str, ...]


class LossSharding(NamedTuple):
    """Names of mesh axes by what they cut.

    mesh: None where there is a single device. batch, time: of the hidden states [B, T, D]. embed, vocab: of
    the head [D, V].
    """

    mesh: Mesh | AbstractMesh | None = None
    batch: Axes = ()
    time: Axes = ()
    embed: Axes = ()
    vocab: Axes = ()

    @property
    def positions(self) -> P:
        """Where [B, T] lies."""
        return P(self.batch or None, self.time or None)

    @property
    def hidden(self) -> P:
        """Where [B, T, D] lies."""
        return P(*self.positions, None)

    @property
    def head(self) -> P:
        """Where [D, V] lies."""
        return P(self.embed or None, self.vocab or None)

    @property
    def head_gradient(self) -> P:
        """Where the gradient of the head lies: cut along D by those axes only whose devices add something."""
        return P(self._scattered or None, self.vocab or None)

    @property
    def _scattered(self) -> Axes:
        return tuple(name for name in self.embed if name in (*self.batch, *self.time))

    def mapped(self, fn: Callable, given: tuple[P, ...], gives: tuple[P, ...]) -> Callable:
        """fn for one device, as a function of the whole arrays.

        Args:
            fn: takes and gives one device's parts.
            given, gives: where the whole arrays lie.
        """
        if self.mesh is None:
            return fn
        return jax.shard_map(fn, mesh=self.mesh, in_specs=given, out_specs=gives, check_vma=False)

    def gathered(self, head: Float[Array, "D v"], dtype: DTypeLike) -> Float[Array, "whole v"]:
        """On a device: all of D, sent in `dtype`."""
        return lax.all_gather(head.astype(dtype), self.embed, axis=0, tiled=True) if self.embed else head

    def summed_head(self, gradient: Float[Array, "whole v"]) -> Float[Array, "D v"]:
        """On a device: its part of the head's gradient, added up over all that have other positions."""
        scattered = self._scattered
        others = tuple(name for name in (*self.batch, *self.time) if name not in scattered)
        if scattered:
            gradient = lax.psum_scatter(gradient, scattered, scatter_dimension=0, tiled=True)
        return lax.psum(gradient, others) if others else gradient

    def first_column(self, columns: int) -> Int[Array, ""] | int:
        """On a device: the number of its part's first entry in the vocabulary."""
        return lax.axis_index(self.vocab) * columns if self.vocab else 0

    def vocabulary(self, columns: int) -> int:
        """On a device with so many columns: how many there are in all."""
        return columns if self.mesh is None else columns * math.prod(self.mesh.shape[n] for n in self.vocab)

    def over_vocabulary(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """On a device: the sum over all parts of the vocabulary."""
        return lax.psum(x, self.vocab) if self.vocab else x

    def log_sum_exp(self, own: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """On a device: the log-sum-exp over the whole vocabulary, from that of each part."""
        if not self.vocab:
            return own
        most = lax.pmax(own, self.vocab)
        return most + jnp.log(lax.psum(jnp.exp(own - most), self.vocab))


def loss_sharding(hidden: Float[Array, "B T D"], head: Float[Array, "D V"]) -> LossSharding:
    """How the devices share the loss inside a trace: not at all where there is one device, or where the mesh
    has other axes than ours, or axes that are not the compiler's to cut along."""
    mesh = jax.typeof(head).sharding.mesh
    if mesh.size == 1 or not automatic_axes(head).keys() >= set(AXES):
        return LossSharding()
    cut = lambda axes, shape: [_names(part) for part in sharding(mesh, axes, shape).spec]
    batch, time, _ = cut(("batch", "time", None), hidden.shape)
    embed, vocab = cut(("embed", "vocab"), head.shape)
    return LossSharding(mesh, batch, time, embed, vocab)


def _names(part: str | Axes | None) -> Axes:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
