"""Every parameter of the decoder, declared once: shape, logical axes, first value.

The declaration is what creation, sharding and weight loading read. Paths are the keys of the params
pytree; layers are stacked on axis 0. Weights are stored [in, out].
"""

import dataclasses
from collections.abc import Callable
from typing import Generic, NotRequired, TypeAlias, TypedDict, TypeVar
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from resonance_jax.model.config import DecoderConfig
from resonance_jax.parallel.mesh import sharding

GATED = ("swiglu", "geglu")
"""MLPs with a gate."""

Leaf = TypeVar("Leaf")


class Tree(TypedDict, Generic[Leaf]):
    """One leaf per parameter of the decoder, such as its array, its sharding or its declaration.

    Attributes:
        embed: the embedding.
        layers: by name, each leaf for all L layers.
        final_norm: the norm before the head.
        head: the output weight; only where embeddings are not tied.
    """

    embed: Leaf
    layers: dict[str, Leaf]
    final_norm: Leaf
    head: NotRequired[Leaf]


Params: TypeAlias = Tree[Array]
"""The arrays: embed [V, D], layers [L, ...], final_norm [D], head [D, V]."""


def real_dtype(name: str) -> np.dtype:
    """The dtype of that name. Raises ValueError for float64 unless JAX computes in 64 bits."""
    dtype = jnp.dtype(name)
    if dtype == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(f"dtype {name} needs 64-bit JAX; set JAX_ENABLE_X64=1.")
    return dtype


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The declaration of one array.

    Attributes:
        shape: of the array, with the layers first where it has any.
        axes: the logical axis of each dimension (parallel.mesh.RULES).
        std: standard deviation of the first values; 0 means that all are `start`.
        start: every first value where std is 0 (a norm's scale begins at 1, a bias at 0).
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    start: float = 1.0

    def first(self, key: Key[Array, ""], dtype: DTypeLike) -> Float[Array, "..."]:
        """First values, drawn in float32 and rounded to `dtype`."""
        if self.std == 0:
            return jnp.full(self.shape, self.start, dtype)
        return (self.std * jax.random.normal(key, self.shape, jnp.float32)).astype(dtype)


def declare(config: DecoderConfig) -> Tree[Parameter]:
    """The declaration of every parameter. L layers, V vocabulary, D model, N, K heads, H head, F MLP."""
    c = config
    L, V, D, F = c.n_layers, c.vocab_size, c.d_model, c.d_ff
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    if c.init == "t5":
        # T5's initialisation (factor 1): queries also absorb the missing 1/sqrt(H).
        std = {"embed": 1.0, "q": (D * c.head_dim) ** -0.5, "o": queries**-0.5, "down": F**-0.5}
        other = D**-0.5
    else:
        # GPT-2's rule: what is added to the residual stream shrinks with the number of additions.
        std = {"o": 0.02 * (2 * L) ** -0.5, "down": 0.02 * (2 * L) ** -0.5}
        other = 0.02

    def weight(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Parameter:
        return Parameter(shape, axes, std.get(name, other))

    def norm(*shape: int) -> Parameter:
        return Parameter(shape, ("layers", "norm")[-len(shape) :], 0.0, 1.0 - c.norm_offset)

    layers = {
        "attn_norm": norm(L, D),
        "q": weight("q", (L, D, queries), ("layers", "embed", "heads")),
        "k": weight("k", (L, D, keys), ("layers", "embed", "kv_heads")),
        "v": weight("v", (L, D, keys), ("layers", "embed", "kv_heads")),
        "o": weight("o", (L, queries, D), ("layers", "heads", "embed")),
        "mlp_norm": norm(L, D),
        "up": weight("up", (L, D, F), ("layers", "embed", "mlp")),
        "down": weight("down", (L, F, D), ("layers", "mlp", "embed")),
    }
    if c.mlp in GATED:
        layers["gate"] = weight("gate", (L, D, F), ("layers", "embed", "mlp"))
    if c.qkv_bias:
        for name, size, axis in (("q", queries, "heads"), ("k", keys, "kv_heads"), ("v", keys, "kv_heads")):
            layers[f"{name}_bias"] = Parameter((L, size), ("layers", axis), 0.0, 0.0)
    if c.qk_norm:
        layers |= {"q_norm": norm(L, c.head_dim), "k_norm": norm(L, c.head_dim)}
    if c.post_norms:
        layers |= {"attn_post_norm": norm(L, D), "mlp_post_norm": norm(L, D)}
    params: Tree[Parameter] = {
        "embed": weight("embed", (V, D), ("vocab", "embed")),
        "layers": layers,
        "final_norm": norm(D),
    }
    if not c.tie_embeddings:
        params["head"] = weight("head", (D, V), ("embed", "vocab"))
    return params


def map_declared(fn: Callable[[str, Parameter], Leaf], config: DecoderConfig) -> Tree[Leaf]:
    """The pytree of fn(path, parameter) over the declaration; a path is such as "embed" or "layers/q"."""
    declared = declare(config)
    tree: Tree[Leaf] = {
        "embed": fn("embed", declared["embed"]),
        "layers": {name: fn(f"layers/{name}", p) for name, p in declared["layers"].items()},
        "final_norm": fn("final_norm", declared["final_norm"]),
    }
    if "head" in declared:
        tree["head"] = fn("head", declared["head"])
    return tree


def abstract(
    config: DecoderConfig, dtype: DTypeLike, mesh: Mesh | AbstractMesh | None = None
) -> Tree[jax.ShapeDtypeStruct]:
    """The params pytree as ShapeDtypeStructs of a dtype, where they lie on a mesh if there is one."""

    def like(_: str, p: Parameter) -> jax.ShapeDtypeStruct:
        where = None if mesh is None else sharding(mesh, p.axes, p.shape)
        return jax.ShapeDtypeStruct(p.shape, dtype, sharding=where)

    return map_declared(like, config)


def shardings(config: DecoderConfig, mesh: Mesh | AbstractMesh) -> Tree[NamedSharding]:
    """Where each parameter lies on a mesh: the params pytree as NamedSharding leaves."""
    return map_declared(lambda _, p: sharding(mesh, p.axes, p.shape), config)


def create(config: DecoderConfig, key: Key[Array, ""], dtype: DTypeLike = jnp.float32) -> Params:
    """Fresh parameters.

    Each draws from the key folded with its own path, so that a new parameter changes no other's values.

    Args:
        config: the decoder.
        key: of the random numbers.
        dtype: of the parameters.
    """
    # crc32, not hash(): the same on every machine and in every process.
    return map_declared(lambda path, p: p.first(jax.random.fold_in(key, crc32(path.encode())), dtype), config)
