"""Which rows of a fixed set of examples a step trains on: a function of (seed, step)."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


class Rows:
    """Row numbers by step for E runs: `rows[step]` is i32[E, B].

    Every epoch holds every row once, in an order made from (the run's seed, epoch), so that equal seeds see
    equal batches. The last batch of an epoch is filled up with -1, which fit_many leaves out of the loss.

    Args:
        count: how many rows there are.
        batch_size: B, rows in a batch.
        seeds: one for each run.

    Raises:
        ValueError: there is no row, or a batch would hold none.
    """

    def __init__(self, count: int, batch_size: int, seeds: Sequence[int]) -> None:
        if count < 1 or batch_size < 1:
            raise ValueError(f"expected at least one row and one per batch, got {count} and {batch_size}.")
        self.count, self.batch_size, self.seeds = count, batch_size, tuple(seeds)
        self._orders = functools.lru_cache(maxsize=2)(self._orders_of)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every row was seen once."""
        return math.ceil(self.count / self.batch_size)

    def _orders_of(self, epoch: int) -> Int[np.ndarray, "E rows"]:
        """The rows of an epoch in each run's order, from raw 64-bit words: the same in every NumPy."""
        orders = np.full((len(self.seeds), self.steps_per_epoch * self.batch_size), -1, np.int32)
        for e, seed in enumerate(self.seeds):
            words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(self.count)
            orders[e, : self.count] = np.argsort(words, kind="stable")
        return orders

    def __getitem__(self, step: int) -> Int[np.ndarray, "E B"]:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._orders(epoch)[:, index * self.batch_size : (index + 1) * self.batch_size]
