"""How an array that is spread over the devices of several hosts is brought to each host whole."""

import jax
import numpy as np


def gathered(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array on this host. Where other hosts hold parts of it, every process has to call this."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        x = process_allgather(x, tiled=True)
    return np.asarray(x)
