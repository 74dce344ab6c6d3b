"""What the decoder asks of a cache, and of the attention that takes the place of its own."""

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, Integer

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig

_Cache = TypeVar("_Cache", bound="Cache")


@runtime_checkable
class Cache(Protocol):
    """What the decoder asks of a cache: a pytree of the keys and values that it has seen (generate.Cache)."""

    @property
    def freqs(self) -> rope.Tables:
        """The table that its keys were rotated under."""
        ...

    def check(
        self,
        config: DecoderConfig,
        tokens: Integer[Array | np.ndarray, "B T"],
        freqs: rope.Tables,
    ) -> None:
        """Raise ValueError if it cannot take these tokens under this table."""

    def positions(self, count: int) -> Int[Array, "*rows {count}"]:
        """The positions of the next `count` tokens: [count] for all rows, or [B, count]."""
        ...

    def attend(
        self: _Cache,
        layer: Int[Array, ""],
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        window: int | None,
        scale: float | None,
        kernel: str,
    ) -> tuple[Float[Array, "B T N H"], _Cache]:
        """Write one layer's new keys and values, then attend. The result has the cache with them in it."""
        ...

    def advanced(self: _Cache, count: int) -> _Cache:
        """The cache once every layer has taken `count` more tokens in every row."""
        ...


@runtime_checkable
class Attend(Protocol):
    """Attention as a layer calls it."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        window: int | None,
        scale: float | None,
        kernel: str,
    ) -> Float[Array, "B T N H"]:
        """The attention's output for each query."""
        ...
