"""Perplexity against context length, under three named protocols that say what they score.

prefix(n):  BOS and the first n-1 tokens of a document in one window of n positions, every token after BOS
            scored. For a static encoding one forward at the longest length gives every shorter one.
sliding:    windows of n positions that advance by `stride`; each scores its last `stride` tokens (the first
            window all of them). BOS opens every window and positions restart there.
yarn:       the same windows as YaRN's eval script cuts them, odd cases included; its headline is the mean
            over windows. `truncate` keeps one window a document, as that script's flag does.

Both averages are always there: token_mean weighs tokens equally, window_mean windows (a first window of
32k tokens counts as much as one of 256).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from resonance_jax import rope
from resonance_jax.evaluate.bootstrap import Interval, mean_interval
from resonance_jax.evaluate.nll import batched_nll
from resonance_jax.model.decoder import Decoder

PROTOCOLS = ("prefix", "sliding", "yarn")
BIN = 64
"""Tokens a bin of NLL by position."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """One (encoding, length) result. W windows; NLL in nats.

    nll f64[W] summed over scored tokens, scored i64[W] how many, document i64[W] which; position_nll and
    position_scored f64[n/64]: the same sums by position in the window, in bins of 64.
    """

    protocol: str
    length: int
    stride: int | None
    bos_id: int | None
    nll: np.ndarray
    scored: np.ndarray
    document: np.ndarray
    position_nll: np.ndarray
    position_scored: np.ndarray

    @property
    def token_mean(self) -> float:
        """exp of the mean NLL over tokens."""
        return float(np.exp(self.nll.sum() / self.scored.sum()))

    @property
    def window_mean(self) -> float:
        """exp of the mean over windows of a window's mean NLL (the YaRN script's figure)."""
        return float(np.exp((self.nll / self.scored).mean()))

    @property
    def tokens(self) -> int:
        return int(self.scored.sum())

    @property
    def windows(self) -> int:
        return len(self.nll)

    @property
    def documents(self) -> int:
        return len(np.unique(self.document))

    def interval(self) -> Interval:
        """token_mean with its 95 % bootstrap interval over documents."""
        nats = mean_interval(self.nll, self.scored, self.document)
        return Interval(*(float(np.exp(x)) for x in (nats.value, nats.low, nats.high)))


def cut_windows(
    tokens: np.ndarray, protocol: str, length: int, stride: int, bos_id: int | None, truncate: bool = False
) -> list[tuple[np.ndarray, int]]:
    """The windows of one document: (i32[n] ids with BOS in front, index of the first scored id)."""
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


def perplexity(
    lm: Decoder,
    documents: Iterable[np.ndarray],
    freqs: rope.Frequencies,
    protocol: str = "prefix",
    length: int = 4096,
    stride: int = 256,
    bos_id: int | None = None,
    truncate: bool = False,
    groups: Sequence[int] | None = None,
    progress: Callable[..., None] | None = None,
) -> Perplexity:
    """Perplexity of token documents (1-D int arrays without special tokens) at one length, in positions.

    bos_id: put in front of every window (None: no BOS, and a window's first token is not scored). groups:
    for each document the text it was cut from, what the bootstrap resamples (default: itself). Raises
    ValueError for an unknown protocol, a stride that would leave tokens unscored, or no document to score.
    """
    _check(protocol, length, stride, bos_id)
    documents = list(documents)
    windows, owner = [], []
    for index, tokens in enumerate(documents):
        if protocol == "prefix" and len(tokens) < length - (bos_id is not None):
            continue
        for window in cut_windows(tokens, protocol, length, stride, bos_id, truncate):
            windows.append(window)
            owner.append(index if groups is None else groups[index])
    if not windows:
        raise ValueError(
            f"none of the {len(documents)} documents has the {length} positions that the {protocol} protocol "
            "needs; give longer documents or a shorter length."
        )
    nll = _window_nll(lm, [ids for ids, _ in windows], freqs, length, progress)
    first = np.asarray([first for _, first in windows])
    sizes = np.asarray([len(ids) for ids, _ in windows])
    return _summarise(nll, first, sizes, np.asarray(owner), protocol, length, stride, bos_id)


def sweep(
    lm: Decoder,
    documents: Iterable[np.ndarray],
    spec: rope.RopeSpec,
    lengths: Sequence[int],
    protocol: str = "prefix",
    stride: int = 256,
    bos_id: int | None = None,
    truncate: bool = False,
    groups: Sequence[int] | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[int, Perplexity]:
    """Perplexity at every length; `prefix` scores the same documents, those long enough for the longest.

    A static encoding under `prefix` costs one forward a document: what follows a token cannot change it.
    A dynamic one gets a table and a forward per length. Raises ValueError as `perplexity` does.
    """
    documents, lengths = list(documents), sorted(set(lengths))
    kept = list(range(len(documents)))
    if protocol == "prefix":
        kept = [i for i in kept if len(documents[i]) >= lengths[-1] - (bos_id is not None)]
    chosen = [documents[i] for i in kept]
    owners = [i if groups is None else groups[i] for i in kept]

    def at(length: int) -> Perplexity:
        freqs = rope.frequencies(spec, length=length)
        return perplexity(
            lm, chosen, freqs, protocol, length, stride, bos_id, truncate, groups=owners, progress=progress
        )

    if protocol != "prefix" or spec.dynamic:
        return {length: at(length) for length in lengths}
    _check(protocol, lengths[-1], stride, bos_id)
    if not chosen:
        return {lengths[-1]: at(lengths[-1])}  # raises the sentence about documents that are too short
    freqs = rope.frequencies(spec, length=lengths[-1])
    ids = [cut_windows(tokens, protocol, lengths[-1], stride, bos_id)[0][0] for tokens in chosen]
    nll = _window_nll(lm, ids, freqs, lengths[-1], progress)
    ones = np.ones(len(ids), np.int64)
    return {
        n: _summarise(nll[:, : n - 1], ones, ones * n, np.asarray(owners), protocol, n, stride, bos_id)
        for n in lengths
    }


def _check(protocol: str, length: int, stride: int, bos_id: int | None) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
    if length < 2:
        raise ValueError(f"a window needs at least 2 positions, got length={length}.")
    if stride < 1 or (protocol == "sliding" and stride > length - (bos_id is not None)):
        raise ValueError(
            f"stride must be between 1 and the tokens of a window ({length - (bos_id is not None)}), or some "
            f"tokens are never scored; got {stride}."
        )


def _window_nll(lm, windows: list[np.ndarray], freqs, length: int, progress) -> np.ndarray:
    """f32[W, length-1], zero where a window is shorter. Windows are padded up to one of four sizes, so
    that few shapes are compiled; padding comes last, where causal attention cannot see it."""
    step = max(1, -(-length // 4))
    sizes = np.asarray([min(length, -(-len(ids) // step) * step) for ids in windows])
    result = np.zeros((len(windows), length - 1), np.float32)
    done = 0
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        padded = np.stack([np.pad(windows[i], (0, size - len(windows[i]))) for i in rows])
        for start, values in batched_nll(lm, padded, freqs):
            result[rows[start : start + len(values)], : size - 1] = values
            done += len(values)
            if progress is not None:
                progress(done, len(windows))
    return result


def _summarise(nll, first, sizes, owner, protocol, length, stride, bos_id) -> Perplexity:
    """nll f[W, n-1] at positions 1 … n-1; a window scores positions first … size-1."""
    position = np.arange(1, nll.shape[1] + 1)
    scored = (position >= first[:, None]) & (position < sizes[:, None])
    values = np.where(scored, nll, 0).astype(np.float64)
    bins = position // BIN
    return Perplexity(
        protocol=protocol,
        length=length,
        stride=None if protocol == "prefix" else stride,
        bos_id=bos_id,
        nll=values.sum(axis=1),
        scored=scored.sum(axis=1),
        document=owner,
        position_nll=np.bincount(bins, values.sum(axis=0)),
        position_scored=np.bincount(bins, scored.sum(axis=0)),
    )
