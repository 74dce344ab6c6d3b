"""What training carries from step to step."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of one run, or of E runs with axis 0 = run.

    Attributes:
        params: what is trained.
        opt_state: what the optimizer keeps.
        step: how many steps are done.
        key: the run's random key; dropout folds the step into it.
    """

    __no_type_check__: ClassVar[bool] = True  # jax also builds it of other things than arrays: shardings

    params: PyTree[Float[Array, "..."]]
    opt_state: optax.OptState
    step: Int[Array, "*E"]
    key: Key[Array, ""]


def new_state(
    params: PyTree[Float[Array, "..."]], tx: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step of one run."""
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), key)
