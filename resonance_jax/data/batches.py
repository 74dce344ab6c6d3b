"""Batches of token rows whose order depends on nothing but (seed, step).

Chunk i is a slice of a token file; the order of epoch e is a permutation made from (seed, e). So the state of
a data pipeline is one integer, the step, and any process can read any rows of any batch.
"""

import functools
import math

import numpy as np
from jaxtyping import Int32, Int64

from resonance_jax import digest
from resonance_jax.data.tokens import TokenFile


class Batches:
    """Batches of equal chunks of a token file: `batches[step]` is int32 [B, T], a pure function of the step.

    Step s holds the chunks s·B ... s·B + B - 1 of the endless sequence epoch 0, epoch 1, ..., each epoch
    being every chunk once in an order made from (seed, epoch). So a run resumes at any step, on any number
    of processes: each reads its own `rows`.
    """

    def __init__(
        self,
        token_file: TokenFile,
        length: int,
        batch_size: int,
        seed: int,
        mode: str = "split",
        source_chunk: int = 65_536,
    ) -> None:
        """
        Args:
            token_file: the tokens, read from the disk as batches are taken.
            length: T, tokens per chunk.
            batch_size: B, rows over all processes.
            seed: of the order of chunks.
            mode: "split" cuts the tokens into chunks of T (the tail is left out); "truncate" takes the first
                T tokens of every `source_chunk` tokens, as the published fine-tuning does.
            source_chunk: tokens of which "truncate" keeps the head.

        Raises:
            ValueError: an argument is out of range, or there are too few tokens for one chunk.
        """
        if mode not in ("split", "truncate"):
            raise ValueError(f"The mode of batches is 'split' or 'truncate', not {mode!r}.")
        if length < 1 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"Batches need length and batch_size >= 1 and seed >= 0, not {length}, {batch_size}, {seed}."
            )
        stride = length if mode == "split" else source_chunk
        if length > stride:
            raise ValueError(
                f"Truncation to {length} tokens needs source chunks at least as long, not {stride}."
            )
        self.tokens, self.length, self.batch_size = token_file.tokens, length, batch_size
        self.chunks = len(token_file) // stride
        if not self.chunks:
            raise ValueError(
                f"{token_file.header['corpus']['name']} has {len(token_file)} tokens, fewer than one chunk "
                f"of {stride}: use a shorter length or more text."
            )
        self._seed, self._stride, self._file = seed, stride, token_file
        self._order = functools.lru_cache(maxsize=2)(self.order)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every chunk was seen: ceil(chunks / batch_size)."""
        return math.ceil(self.chunks / self.batch_size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that the batches of every step depend on: the tokens, and how they are cut
        and ordered."""
        return digest.of_json(
            {
                "tokens": self._file.fingerprint,
                "length": self.length,
                "rows": self.batch_size,
                "seed": self._seed,
                "stride": self._stride,
            }
        )

    def order(self, epoch: int) -> Int64[np.ndarray, "chunks"]:
        """The order of one epoch, a permutation made from raw 64-bit words: the same in every NumPy."""
        words = np.random.Philox(np.random.SeedSequence([self._seed, epoch])).random_raw(self.chunks)
        return np.argsort(words, kind="stable")

    def __getitem__(self, step: int) -> Int32[np.ndarray, "B T"]:
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Int32[np.ndarray, "rows T"]:
        """Rows start ... stop - 1 of the batch of one step. ValueError if there are no such rows."""
        if step < 0 or not 0 <= start <= stop <= self.batch_size:
            raise ValueError(
                f"There are no rows {start} to {stop} of step {step} in batches of {self.batch_size}."
            )
        rows = np.empty((stop - start, self.length), np.int32)
        for row in range(start, stop):
            epoch, index = divmod(step * self.batch_size + row, self.chunks)
            begin = self._order(epoch)[index] * self._stride
            rows[row - start] = self.tokens[begin : begin + self.length]
        return rows
