"""Plain data parallelism on one host by jax.pmap: rows split over the local devices, weights copied to each.

jit with NamedSharding (mesh.py) is the main road and scales past one host; this adapter is for the common
case of one host with a few devices and a model that fits on each.
"""

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from resonance_jax.parallel.mesh import Device

Weights = TypeVar("Weights")
"""A pytree of arrays."""
Rest = TypeVarTuple("Rest")


def replicate(params: Weights, devices: Sequence[Device] | None = None) -> Weights:
    """Copy a pytree to every local device, once, for any number of calls of an `over_devices` function.

    Args:
        params: a pytree of arrays. Those that lie on all the devices already are not copied again.
        devices: as for `over_devices`.

    Returns:
        The same pytree, each of its arrays whole on every device.
    """
    mesh = Mesh(np.array(_local(devices)), ("rows",))
    return jax.device_put(params, NamedSharding(mesh, PartitionSpec()))


def over_devices(
    fn: Callable[[Weights, Shaped[Array, "rows ..."], *Rest], Shaped[Array, "rows ..."]],
    devices: Sequence[Device] | None = None,
) -> Callable[[Weights, Shaped[Array | np.ndarray, "rows ..."], *Rest], Shaped[np.ndarray, "rows ..."]]:
    """Run a function of weights and rows on several devices at once, each with its share of the rows.

    Args:
        fn: fn(params, rows, *rest) -> out; rows and out are arrays whose axis 0 is the row.
        devices: of this host; default all of them.

    Returns:
        A function of the same arguments that gives `out` on the host. It repeats the last row where the
        devices do not divide the rows, so any number of rows works. params and rest go whole to every device.
        All calls with the same params share one copy, which is freed with them, if they are jax.Arrays; NumPy
        arrays may change in between and are copied at every call.
    """
    local = _local(devices)
    compiled: dict[int, Callable[..., Array]] = {}
    copies = _Copies(local)

    def run(
        params: Weights, rows: Shaped[Array | np.ndarray, "rows ..."], *rest: *Rest
    ) -> Shaped[np.ndarray, "rows ..."]:
        rows, params = np.asarray(rows), copies.of(params)
        if len(rest) not in compiled:
            axes = (None, 0, *(None for _ in rest))
            compiled[len(rest)] = jax.pmap(fn, in_axes=axes, devices=local)
        each = -(-len(rows) // len(local))
        index = np.minimum(np.arange(each * len(local)), len(rows) - 1)
        split = rows[index].reshape(len(local), each, *rows.shape[1:])
        out = np.asarray(compiled[len(rest)](params, split, *rest))
        return out.reshape(-1, *out.shape[2:])[: len(rows)]

    return run


class _Copies:
    """Copies on every device of the weights that were given last, for as long as those weights exist."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._given: list[weakref.ref[Array]] = []
        self._copies: object = None

    def of(self, params: Weights) -> Weights:
        """A copy of `params` on every device, made only if these are other arrays than those before."""
        leaves, structure = jax.tree.flatten(params)
        if not all(isinstance(leaf, jax.Array) for leaf in leaves):  # which may change in place
            return params
        given = [ref() for ref in self._given]
        same = len(given) == len(leaves) and all(map(operator.is_, given, leaves))
        if same and jax.tree.structure(self._copies) == structure:
            return cast(Weights, self._copies)
        copies = replicate(params, self._devices)
        # Weights that lie on every device already are no copies: kept here they would never go.
        if not any(map(operator.is_, jax.tree.leaves(copies), leaves)):
            self._copies, self._given = copies, [weakref.ref(leaf, self._forget) for leaf in leaves]
        return copies

    def _forget(self, gone: "weakref.ref[Array]") -> None:
        if any(ref is gone for ref in self._given):
            self._given, self._copies = [], None


def _local(devices: Sequence[Device] | None) -> list[Device]:
    return jax.local_devices() if devices is None else list(devices)
