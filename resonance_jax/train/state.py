"""What training carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """params and opt_state pytrees, step i32[], key: of the run (dropout folds the step into it)."""

    params: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array


def new_state(params: Any, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), key)
