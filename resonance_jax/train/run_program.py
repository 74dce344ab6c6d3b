"""The compiled training step of one run, and where its state lies on a mesh.

Parameters and optimizer moments lie alike, by the logical axes of the parameters. Master weights and moments
are float32 (or float64) whatever the activations compute in.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree, UInt32

from resonance_jax.model import lora as adapters
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Params, Weights
from resonance_jax.model.parameters import abstract, shardings
from resonance_jax.rope import Tables
from resonance_jax.settings.lora import LoraConfig
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.optimizer import make_optimizer
from resonance_jax.train.state import TrainState, new_state
from resonance_jax.train.step import Batch, Metrics, Trained, train_step

Frozen = dict[str, Float[Array, "..."]]
"""Weights by path that are not trained, beside adapters."""


class RunProgram:
    """The compiled training step of one decoder, and where everything lies.

    Raises ValueError for a path to freeze that is none of the decoder's.

    Attributes:
        step: step(state, frozen, batch, freqs) -> (state, metrics); the state is donated. Without adapters
            `frozen` is empty and state.params are the decoder's.
        like: the state as ShapeDtypeStructs with shardings.
    """

    def __init__(
        self,
        config: DecoderConfig,
        training: TrainConfig,
        mesh: Mesh | AbstractMesh | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        self.config, self.mesh, self.lora = config, mesh, lora
        self.dtype = jnp.promote_types(jnp.float32, config.dtype)
        self.tx = make_optimizer(training.optimizer, training.steps)
        self.everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        trained = jax.eval_shape(self._trained, abstract(config, self.dtype), np.uint32(0))
        state = jax.eval_shape(self._first, trained, np.uint32(0))
        where = None if mesh is None else self._shardings(state, mesh)
        self.like: TrainState = state if where is None else jax.tree.map(_placed, state, where)
        adapted = None if lora is None else functools.partial(self._adapted, lora=lora)

        def step(
            state: TrainState, frozen: Frozen, batch: Batch, freqs: Tables
        ) -> tuple[TrainState, Metrics]:
            own = None if adapted is None else functools.partial(adapted, frozen=frozen)
            return train_step(config, self.tx, state, batch, freqs, training.micro, own)

        out = None if where is None else (where, self.everywhere)
        self.step = jax.jit(step, donate_argnums=0, out_shardings=out)
        self._where = where

    @property
    def frozen_like(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The weights by path that are not trained, as ShapeDtypeStructs with shardings."""
        if self.lora is None:
            return {}
        return adapters.split(abstract(self.config, self.dtype, self.mesh), self.lora)[1]

    def place(self, params: Params, seed: int, donate: bool = False) -> tuple[Trained, Frozen]:
        """Split the decoder's params into (trained, frozen), each placed where it belongs.

        Args:
            params: of the decoder. Trained ones become self.dtype.
            seed: of the first values of adapters.
            donate: the params may be given away; otherwise what is trained is a copy.
        """
        where = None if self._where is None else self._where.params
        # A jitted function hands an unchanged input through; training would then give it away.
        own = (lambda x: x) if donate else (lambda x: jnp.copy(x))
        make = lambda params, seed: jax.tree.map(own, self._trained(params, seed))
        trained = jax.jit(make, out_shardings=where)(params, np.uint32(seed))
        frozen = {} if self.lora is None else adapters.split(params, self.lora)[1]
        return trained, frozen

    def first_state(self, trained: Trained, seed: int) -> TrainState:
        """The state before the first step, to which `trained` is given away. seed: of the run's key."""
        return jax.jit(self._first, out_shardings=self._where)(trained, np.uint32(seed))

    def merged(self, trained: Trained, frozen: Frozen) -> Params:
        """The decoder's params pytree with the adapters added in, placed as a decoder's params are."""
        lora = self.lora
        if lora is None:
            return trained
        params = adapters.unflatten({**frozen, **trained["whole"]})
        where = None if self.mesh is None else shardings(self.config, self.mesh)
        merge = jax.jit(lambda p, a: adapters.merge(p, a, lora), out_shardings=where)
        return merge(params, trained["adapters"])

    def _trained(self, params: Params, seed: int | UInt32[Array, ""]) -> Trained:
        if self.lora is None:
            return jax.tree.map(lambda x: x.astype(self.dtype), params)
        whole, _ = adapters.split(params, self.lora)
        key = jax.random.fold_in(jax.random.key(seed), 2)
        return {
            "adapters": adapters.create(self.config, self.lora, key, self.dtype),
            "whole": {path: x.astype(self.dtype) for path, x in whole.items()},
        }

    def _first(self, trained: Trained, seed: int | UInt32[Array, ""]) -> TrainState:
        return new_state(trained, self.tx, jax.random.fold_in(jax.random.key(seed), 1))

    def _adapted(self, trained: Trained, frozen: Frozen, lora: LoraConfig) -> Weights:
        params = adapters.unflatten({**frozen, **trained["whole"]})
        return adapters.adapt(params, trained["adapters"], lora)

    def _shardings(self, state: TrainState, mesh: Mesh | AbstractMesh) -> TrainState:
        """The state's pytree as shardings: moments lie as their parameters do, all else is everywhere."""
        params: PyTree[NamedSharding] = shardings(self.config, mesh)
        if self.lora is not None:
            whole, _ = adapters.split(params, self.lora)
            params = {"adapters": adapters.shardings(self.config, self.lora, mesh), "whole": whole}
        everywhere = self.everywhere
        moments = optax.tree_map_params(
            self.tx,
            lambda _, where: where,
            state.opt_state,
            params,
            transform_non_params=lambda _: everywhere,
        )
        return dataclasses.replace(state, params=params, opt_state=moments, step=everywhere, key=everywhere)


def _placed(x: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
