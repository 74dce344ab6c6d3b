"""What a corpus consists of: documents, and the places where one was left out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True)
class Document:
    """One document: a name that is unique in its corpus, its text, and its ids if it came tokenized.

    `tokens` are the ids as the file had them, or None; `text` is empty if the file held only ids.
    """

    name: str
    text: str
    tokens: Int32[np.ndarray, "T"] | None = None


@dataclass(frozen=True)
class LeftOut:
    """A place in a corpus that holds no usable text or ids, and the sentence that says why."""

    name: str
    reason: str


Item = Document | LeftOut
Reader = Callable[[], Iterator[Item]]
"""Reads a source from its beginning at every call."""


class LeftOutWarning(UserWarning):
    """Warns that some documents of a corpus were left out, unless its reader takes note of each."""
