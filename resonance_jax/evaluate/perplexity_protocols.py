"""How a document is cut into windows under three named protocols, which say what is scored.

prefix(n):  BOS and the first n-1 tokens of a document in one window of n positions, every token after BOS
            scored. For a static encoding one forward at the longest length gives every shorter one.
sliding:    windows of n positions that advance by `stride`; each scores its last `stride` tokens (the first
            window scores all of its tokens). BOS opens every window, and positions restart there.
yarn:       the same windows as YaRN's eval script cuts them, odd cases included; its headline is the mean
            over windows. `truncate` keeps one window per document, as that script's flag does.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, Integer

PROTOCOLS = ("prefix", "sliding", "yarn")

Window = tuple[Int[np.ndarray, "_"], int]
"""int32[n] ids with BOS in front, and the index of the first id that is scored."""


@dataclasses.dataclass(frozen=True)
class Windowing:
    """One protocol with its settings.

    Attributes:
        protocol: one of PROTOCOLS.
        stride: tokens that a window advances by.
        bos_id: put in front of every window; None: no BOS, and a window's first token is not scored.
        truncate: keep one window per document.
    """

    protocol: str
    stride: int
    bos_id: int | None
    truncate: bool

    def check(self, length: int) -> None:
        """Raise ValueError unless documents can be cut this way into windows of `length` positions."""
        usable = length - (self.bos_id is not None)
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
        if length < 2:
            raise ValueError(f"a window needs at least 2 positions, got length={length}.")
        if self.stride < 1 or (self.protocol == "sliding" and self.stride > usable):
            raise ValueError(
                f"stride must be between 1 and the tokens of a window ({usable}), or some tokens are never "
                f"scored; got {self.stride}."
            )

    def tokens_needed(self, length: int) -> int:
        """How many tokens a document must have to be scored at a length."""
        if self.protocol == "prefix":
            return length - (self.bos_id is not None)
        return 1 + (self.bos_id is None)

    def cut(self, tokens: Integer[np.ndarray, "_"], length: int) -> list[Window]:
        """The windows of one document."""
        return cut_windows(tokens, self.protocol, length, self.stride, self.bos_id, self.truncate)


def cut_windows(
    tokens: Integer[np.ndarray, "_"],
    protocol: str,
    length: int,
    stride: int,
    bos_id: int | None,
    truncate: bool = False,
) -> list[Window]:
    """The windows of one document, each of at most `length` positions; other arguments as Windowing's."""
    bos = np.asarray([] if bos_id is None else [bos_id], np.int32)
    usable = length - len(bos)
    tokens = np.asarray(tokens, np.int32)
    if protocol == "prefix" or truncate:
        tokens, stride = tokens[:usable], usable
    windows, previous_end = [], 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + usable, len(tokens))
        ids = np.concatenate([bos, tokens[begin:end]])
        # The first id of a window has nothing before it, so it is never scored.
        first = max(1, len(ids) - (end - previous_end))
        if first < len(ids):
            windows.append((ids, first))
        previous_end = end
        if end == len(tokens):
            break
    return windows
