"""LoRA (Hu et al. 2021): a low-rank product beside every linear weight, x W + (alpha / r) x A B.

Functional: adapters are a pytree of their own, laid over the frozen parameters for a forward and added into
them for export. B begins at zero, so that the adapted model begins as the model.
"""

import dataclasses
import functools
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp

from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.parameters import declare
from resonance_jax.parallel.mesh import sharding
from resonance_jax.settings.lora import LoraConfig

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
"""Every linear layer of the stack; the head is not one of them."""


class Adapter(NamedTuple):
    """a [L, I, r] and b [L, r, O]: the product a @ b is added to a weight [L, I, O]."""

    a: Any
    b: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weight", "a", "b"], meta_fields=["scale", "dropout"]
)
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight [L, I, O] with its adapter, where the decoder expects a weight. scale: alpha / r."""

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float
    dropout: float


def create(config: DecoderConfig, lora: LoraConfig, key: jax.Array, dtype=jnp.float32) -> dict[str, Adapter]:
    """Fresh adapters by parameter path: a uniform within 1 / sqrt(I) (PEFT's Kaiming bound), b zero."""

    def adapter(path, p) -> Adapter:
        L, I, O = p.shape
        own = jax.random.fold_in(key, crc32(path.encode()))
        a = jax.random.uniform(own, (L, I, lora.rank), dtype, -(I**-0.5), I**-0.5)
        return Adapter(a, jnp.zeros((L, lora.rank, O), dtype))

    return {path: adapter(path, p) for path, p in _linear(config).items()}


def shardings(config: DecoderConfig, lora: LoraConfig, mesh) -> dict[str, Adapter]:
    """Where every adapter lies on a mesh: cut along I and O as its weight is."""

    def where(p) -> Adapter:
        L, I, O = p.shape
        a = sharding(mesh, (p.axes[0], p.axes[1], None), (L, I, lora.rank))
        return Adapter(a, sharding(mesh, (p.axes[0], None, p.axes[2]), (L, lora.rank, O)))

    return {path: where(p) for path, p in _linear(config).items()}


def split(params: dict, lora: LoraConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained whole, frozen): the params pytree as two flat dicts by path."""
    flat = flatten(params)
    trained = {path: x for path, x in flat.items() if lora.whole(path)}
    return trained, {path: x for path, x in flat.items() if path not in trained}


def adapt(params: dict, adapters: dict[str, Adapter], lora: LoraConfig) -> dict:
    """The params pytree with adapters laid over it, for the decoder's functions."""
    over = {
        path: Adapted(x, *adapters[path], lora.alpha / lora.rank, lora.dropout) if path in adapters else x
        for path, x in flatten(params).items()
    }
    return unflatten(over)


def merge(params: dict, adapters: dict[str, Adapter], lora: LoraConfig) -> dict:
    """The params pytree with (alpha / r) a @ b added into the weights, in their dtype."""

    def added(path, x):
        if path not in adapters:
            return x
        a, b = adapters[path]
        return (x + (lora.alpha / lora.rank) * jnp.matmul(a, b, precision="highest")).astype(x.dtype)

    return unflatten({path: added(path, x) for path, x in flatten(params).items()})


def flatten(params: dict) -> dict[str, Any]:
    """The params pytree by path: {"layers/q": …}."""
    flat = {f"layers/{name}": x for name, x in params["layers"].items()}
    return {**{name: x for name, x in params.items() if name != "layers"}, **flat}


def unflatten(flat: dict[str, Any]) -> dict:
    layers = {path.removeprefix("layers/"): x for path, x in flat.items() if path.startswith("layers/")}
    return {**{path: x for path, x in flat.items() if "/" not in path}, "layers": layers}


def _linear(config: DecoderConfig) -> dict[str, Any]:
    layers = declare(config)["layers"]
    return {f"layers/{name}": layers[name] for name in LINEAR if name in layers}
