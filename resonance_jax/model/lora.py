"""LoRA (Hu et al. 2021): a low-rank product beside every linear weight, x W + (alpha / r) x A B.

Adapters are a pytree of their own. `adapt` lays them over the frozen parameters for a forward pass, `merge`
adds them into the parameters for export. B begins at zero, so that the adapted model begins as the model.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple, NotRequired, TypedDict, TypeVar, cast
from zlib import crc32

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.parameters import Parameter, Params, Tree, declare
from resonance_jax.parallel.mesh import sharding
from resonance_jax.settings.lora import LoraConfig

Leaf = TypeVar("Leaf")
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
"""Every linear layer of the stack; the head is not one of them."""


class Adapter(NamedTuple):
    """An adapter of one weight [L, I, O]: the product a @ b is added to it."""

    a: Float[Array, "L I r"]
    b: Float[Array, "L r O"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "a", "b"], meta_fields=["scale", "dropout"]
)
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight with its adapter, which the decoder takes in place of a weight.

    It is stacked [L, I, O], as in the params pytree, or one layer's.

    Attributes:
        weight: the frozen weight.
        a, b: the adapter's factors.
        scale: alpha / r.
        dropout: rate on the adapter's input.
    """

    __no_type_check__: ClassVar[bool] = True  # jax also builds it of what are no arrays, such as shardings

    weight: Float[Array, "*layers I O"]
    a: Float[Array, "*layers I r"]
    b: Float[Array, "*layers r O"]
    scale: float
    dropout: float


class AdaptedParams(TypedDict):
    """The params pytree with adapters laid over its linear weights."""

    embed: Array
    layers: dict[str, Array | Adapted]
    final_norm: Array
    head: NotRequired[Array]


def create(
    config: DecoderConfig, lora: LoraConfig, key: Key[Array, ""], dtype: DTypeLike = jnp.float32
) -> dict[str, Adapter]:
    """Fresh adapters of every linear weight, by its path.

    Args:
        config: the decoder.
        lora: the rank.
        key: of a's random numbers, uniform within 1 / sqrt(I) (PEFT's Kaiming bound); b is zero.
        dtype: of the adapters.
    """

    def adapter(path: str, p: Parameter) -> Adapter:
        L, I, O = p.shape
        own = jax.random.fold_in(key, crc32(path.encode()))
        a = jax.random.uniform(own, (L, I, lora.rank), dtype, -(I**-0.5), I**-0.5)
        return Adapter(a, jnp.zeros((L, lora.rank, O), dtype))

    return {path: adapter(path, p) for path, p in _linear(config).items()}


def shardings(
    config: DecoderConfig, lora: LoraConfig, mesh: Mesh | AbstractMesh
) -> dict[str, tuple[NamedSharding, NamedSharding]]:
    """Where every adapter lies on a mesh: Adapters of shardings, cut along I and O as the weight is."""

    def where(p: Parameter) -> tuple[NamedSharding, NamedSharding]:
        L, I, O = p.shape
        a = sharding(mesh, (p.axes[0], p.axes[1], None), (L, I, lora.rank))
        b = sharding(mesh, (p.axes[0], None, p.axes[2]), (L, lora.rank, O))
        return cast(tuple[NamedSharding, NamedSharding], Adapter._make((a, b)))

    return {path: where(p) for path, p in _linear(config).items()}


def split(params: Tree[Leaf], lora: LoraConfig) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """The leaves that are trained whole, and those that stay as they are, each by path.

    Args:
        params: the params pytree, or one like it.
        lora: what is trained whole.
    """
    flat = flatten(params)
    trained = {path: x for path, x in flat.items() if lora.whole(path)}
    return trained, {path: x for path, x in flat.items() if path not in trained}


def adapt(params: Params, adapters: dict[str, Adapter], lora: LoraConfig) -> AdaptedParams:
    """The params pytree with adapters laid over it, for the decoder's functions.

    Args:
        params: the frozen weights.
        adapters: by path, as `create` makes them.
        lora: their scale and dropout.
    """

    def over(path: str, x: Float[Array, "..."]) -> Float[Array, "..."] | Adapted:
        if path not in adapters:
            return x
        a, b = adapters[path]
        return Adapted(x, a, b, lora.alpha / lora.rank, lora.dropout)

    laid = unflatten({path: over(path, x) for path, x in flatten(params).items()})
    return cast(AdaptedParams, laid)  # only linear weights, which are in the layers, have adapters


def merge(params: Params, adapters: dict[str, Adapter], lora: LoraConfig) -> Params:
    """The params pytree with (alpha / r) a @ b added into the weights, in their dtype.

    Args:
        params, adapters, lora: as for `adapt`.
    """

    def added(path: str, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if path not in adapters:
            return x
        a, b = adapters[path]
        return (x + (lora.alpha / lora.rank) * jnp.matmul(a, b, precision="highest")).astype(x.dtype)

    return unflatten({path: added(path, x) for path, x in flatten(params).items()})


def flatten(params: Tree[Leaf]) -> dict[str, Leaf]:
    """The leaves of a params pytree by path, such as "embed" or "layers/q"."""
    flat = {f"layers/{name}": x for name, x in params["layers"].items()}
    top = cast(dict[str, Leaf], {name: x for name, x in params.items() if name != "layers"})
    return {**top, **flat}


def unflatten(flat: dict[str, Leaf]) -> Tree[Leaf]:
    """The params pytree of leaves by path: `flatten` undone."""
    layers = {path.removeprefix("layers/"): x for path, x in flat.items() if path.startswith("layers/")}
    top = {path: x for path, x in flat.items() if "/" not in path}
    return cast(Tree[Leaf], {**top, "layers": layers})


def _linear(config: DecoderConfig) -> dict[str, Parameter]:
    """The declarations of the linear weights, by path."""
    layers = declare(config)["layers"]
    return {f"layers/{name}": layers[name] for name in LINEAR if name in layers}
