"""When a row of new tokens ends: at an EOS, with a stop string in its text, or at its length."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

Reason = Literal["eos", "stop", "length"]
"""Why a row ended: an EOS, a stop string, or the number of tokens it may have."""


class Row:
    """The new tokens of one row, and the reason it ended, or None while it goes on.

    Args:
        eos: tokens that end it.
        stops: strings that end it as soon as its text contains one.
        decode: makes text of its tokens; needed for stop strings and for `text`.
        most: how many tokens it may have.
    """

    def __init__(
        self,
        eos: Int[np.ndarray, "ends"],
        stops: Sequence[str],
        decode: Callable[[list[int]], str] | None,
        most: int,
    ) -> None:
        self.eos, self.stops, self.decode, self.most = eos, stops, decode, most
        self.tokens: list[int] = []
        self.reason: Reason | None = None

    def take(self, new: Int[np.ndarray, "new"]) -> None:
        """Append tokens up to the one that ends the row; later tokens are ignored."""
        if self.reason is not None:
            return
        known, ends = len(self.tokens), np.flatnonzero(np.isin(new, self.eos))
        new = new[: ends[0] + 1] if len(ends) else new
        self.tokens += new[: self.most - known].tolist()
        if len(ends):
            self.reason = "eos"
        elif len(self.tokens) == self.most:
            self.reason = "length"
        if self._stop(len(self.tokens)) is None:
            return
        while self._stop(known) is None:
            known += 1
        self.tokens, self.reason = self.tokens[:known], "stop"

    def text(self) -> str:
        """The new text, cut before the first stop string."""
        text = self._text(len(self.tokens))
        return text[: self._stop(len(self.tokens))]

    def _text(self, count: int) -> str:
        """The text of the first `count` tokens, without an EOS at their end."""
        tokens = self.tokens[:count]
        assert self.decode is not None
        return self.decode(tokens[:-1] if tokens and tokens[-1] in self.eos else tokens)

    def _stop(self, count: int) -> int | None:
        """Where the first stop string begins in the text of the first `count` tokens."""
        if not self.stops:
            return None
        found = [at for at in map(self._text(count).find, self.stops) if at >= 0]
        return min(found, default=None)
