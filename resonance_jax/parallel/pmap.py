"""Plain data parallelism on one host by jax.pmap: rows split over the local devices, weights copied to each.

jit with NamedSharding (mesh.py) is the main road and scales past one host; this adapter is for the common
case of one host with a few devices and a model that fits on each.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np


def over_devices(fn: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """fn(params, rows, *rest) -> out, run on all local devices at once.

    rows and out are arrays whose axis 0 is the row; params and rest go to every device whole. The rows are
    padded by repeating the last one, so any number of them works. Returns out on the host.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    compiled: dict[int, Callable] = {}

    def run(params, rows, *rest):
        rows = np.asarray(rows)
        if len(rest) not in compiled:
            axes = (None, 0, *(None for _ in rest))
            compiled[len(rest)] = jax.pmap(fn, in_axes=axes, devices=devices)
        each = -(-len(rows) // len(devices))
        index = np.minimum(np.arange(each * len(devices)), len(rows) - 1)
        split = rows[index].reshape(len(devices), each, *rows.shape[1:])
        out = np.asarray(compiled[len(rest)](params, split, *rest))
        return out.reshape(-1, *out.shape[2:])[: len(rows)]

    return run
