"""Every parameter of the decoder, declared once: shape, logical axes, first value.

The declaration is what creation, sharding and weight loading read. Paths are the keys of the params
pytree; layers are stacked on axis 0. Weights are stored [in, out].
"""

import dataclasses
from collections.abc import Callable
from zlib import crc32

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from resonance_jax.model.config import DecoderConfig
from resonance_jax.parallel.mesh import sharding


def real_dtype(name: str) -> jnp.dtype:
    """The dtype of that name. Raises ValueError for float64 unless JAX computes in 64 bits."""
    dtype = jnp.dtype(name)
    if dtype == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(f"dtype {name} needs 64-bit JAX; set JAX_ENABLE_X64=1.")
    return dtype


@dataclasses.dataclass(frozen=True)
class Parameter:
    """shape and logical axes (parallel.mesh.RULES) of one array; std 0 means ones (a norm's scale)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float

    def first(self, key: jax.Array, dtype) -> jax.Array:
        if self.std == 0:
            return jnp.ones(self.shape, dtype)
        return (self.std * jax.random.normal(key, self.shape, jnp.float32)).astype(dtype)


def declare(config: DecoderConfig) -> dict:
    """The params pytree as Parameter leaves. L layers, V vocabulary, D model, N, K heads, H head, F MLP."""
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

    layers = {
        "attn_norm": Parameter((L, D), ("layers", "norm"), 0),
        "q": weight("q", (L, D, queries), ("layers", "embed", "heads")),
        "k": weight("k", (L, D, keys), ("layers", "embed", "kv_heads")),
        "v": weight("v", (L, D, keys), ("layers", "embed", "kv_heads")),
        "o": weight("o", (L, queries, D), ("layers", "heads", "embed")),
        "mlp_norm": Parameter((L, D), ("layers", "norm"), 0),
        "up": weight("up", (L, D, F), ("layers", "embed", "mlp")),
        "down": weight("down", (L, F, D), ("layers", "mlp", "embed")),
    }
    if c.mlp == "swiglu":
        layers["gate"] = weight("gate", (L, D, F), ("layers", "embed", "mlp"))
    params = {
        "embed": weight("embed", (V, D), ("vocab", "embed")),
        "layers": layers,
        "final_norm": Parameter((D,), ("norm",), 0),
    }
    if not c.tie_embeddings:
        params["head"] = weight("head", (D, V), ("embed", "vocab"))
    return params


def map_declared(fn: Callable[[str, Parameter], object], config: DecoderConfig) -> dict:
    """fn(path, parameter) over the declaration, as the same pytree; a path reads "layers/q"."""

    def visit(node, path):
        if isinstance(node, Parameter):
            return fn(path, node)
        return {name: visit(child, f"{path}/{name}" if path else name) for name, child in node.items()}

    return visit(declare(config), "")


def shardings(config: DecoderConfig, mesh: Mesh | AbstractMesh) -> dict:
    """Where each parameter lies on a mesh: the params pytree as NamedSharding leaves."""
    return map_declared(lambda _, p: sharding(mesh, p.axes, p.shape), config)


def create(config: DecoderConfig, key: jax.Array, dtype=jnp.float32) -> dict:
    """Fresh parameters. Each draws from the key folded with its own path, so adding one moves no other."""
    # crc32, not hash(): the same on every machine and in every process.
    return map_declared(lambda path, p: p.first(jax.random.fold_in(key, crc32(path.encode())), dtype), config)
