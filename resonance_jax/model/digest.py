"""A digest of weights: results and checkpoints belong to the weights that made them, not to a path."""

import hashlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, PyTree

_BLOCK_BYTES = 1 << 26


def weights_digest(params: PyTree[Float[Array | np.ndarray, "..."]]) -> str:
    """SHA-256 over every weight: its path, dtype, shape and all its bytes.

    The same however the weights are cut over devices and hosts; every process takes part and gets it. It
    takes about a second for half a gigabyte.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {list(leaf.shape)}\n".encode())
        for part in _parts(leaf):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _parts(leaf: Float[Array, "..."] | Float[np.ndarray, "..."]) -> Iterator[np.ndarray]:
    """The array on the host, in its own order; large ones that lie elsewhere come in parts."""
    local = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    if local and jax.default_backend() == "cpu":
        yield np.asarray(leaf)
        return
    rows = max(1, _BLOCK_BYTES * leaf.shape[0] // max(1, leaf.nbytes))
    for start in range(0, leaf.shape[0], rows):
        part = leaf[start : start + rows]
        yield np.asarray(part) if local else multihost_utils.process_allgather(part, tiled=True)
