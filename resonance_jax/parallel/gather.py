"""Arrays that lie on the devices of several hosts, brought to each host whole."""

import jax
import numpy as np


def gathered(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array on this host. Every process has to call it where some parts lie with others."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        x = process_allgather(x, tiled=True)
    return np.asarray(x)
