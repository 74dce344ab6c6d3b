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

    params: what is trained. opt_state: the optimizer's. step: how many steps are behind it. key: of the run;
    dropout folds the step into it.
    """

    __no_type_check__: ClassVar[bool] = True  # jax also builds it of what are no arrays, such as shardings

    params: PyTree[Float[Array, "..."]]
    opt_state: optax.OptState
    step: Int[Array, "*E"]
    key: Key[Array, ""]


def new_state(
    params: PyTree[Float[Array, "..."]], tx: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step of one run."""
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), key)
