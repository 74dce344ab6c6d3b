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
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from resonance_jax import rope
from resonance_jax.evaluate.bootstrap import Interval, mean_interval
from resonance_jax.evaluate.nll import TOKENS_PER_BATCH, batched_nll
from resonance_jax.files import atomic
from resonance_jax.model.decoder import Decoder
from resonance_jax.parallel.pmap import replicate

PROTOCOLS = ("prefix", "sliding", "yarn")
BIN = 64
"""Tokens a bin of NLL by position."""


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """One (encoding, length) result. W windows; NLL in nats.

    nll f64[W] summed over scored tokens, scored i64[W] how many, document i64[W] which; position_nll f64 and
    position_scored i64, [n/64 + 1]: the same sums by position in the window, in bins of 64.
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


def merge(parts: Sequence[Perplexity]) -> Perplexity:
    """The result over all documents from results over some; the parts agree in everything else."""
    joined = {
        name: np.concatenate([getattr(p, name) for p in parts]) for name in ("nll", "scored", "document")
    }
    added = {name: sum(getattr(p, name) for p in parts) for name in ("position_nll", "position_scored")}
    return dataclasses.replace(parts[0], **joined, **added)


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
    pmap: bool = False,
    progress: Callable[..., None] | None = None,
) -> Perplexity:
    """Perplexity of token documents (1-D int arrays without special tokens) at one length, in positions.

    bos_id: put in front of every window (None: no BOS, and a window's first token is not scored). groups:
    for each document the text it was cut from, what the bootstrap resamples (default: itself). pmap: split
    batches over this host's devices. progress(done, windows). Raises ValueError for an unknown protocol, a
    stride that would leave tokens unscored, or no document to score.
    """
    how = _How(protocol, stride, bos_id, truncate, pmap)
    _check(how, length)
    documents = list(documents)
    kept = _long_enough(documents, how, length, groups)
    return merge([r[length] for r in _score(lm, kept, freqs, [length], how, progress)])


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
    pmap: bool = False,
    progress: Callable[..., None] | None = None,
    store: "Store | None" = None,
) -> dict[int, Perplexity]:
    """Perplexity at every length; `prefix` scores the same documents, those long enough for the longest.

    A static encoding under `prefix` costs one forward a document: what follows a token cannot change it.
    A dynamic one gets a table and a forward per length. store: keeps every finished document, and what it
    has is not computed again. progress(done, documents). Raises ValueError as `perplexity` does.
    """
    how = _How(protocol, stride, bos_id, truncate, pmap)
    lengths = sorted(set(lengths))
    for length in lengths:
        _check(how, length)
    kept = _long_enough(list(documents), how, lengths[-1], groups)
    if pmap:
        lm = lm.replace_params(replicate(lm.params))  # here, or every document would copy the weights
    # One window a document: a shorter context is a prefix of a longer one.
    at_once = (protocol == "prefix" or truncate) and not spec.dynamic
    passes = [lengths] if at_once else [[length] for length in lengths]
    tables = [rope.frequencies(spec, length=some[-1]) for some in passes]
    results: list[dict[int, Perplexity]] = []
    # As many documents together as fill a batch of the longest windows, so that few are lost to a kill.
    together = max(1, TOKENS_PER_BATCH // lengths[-1]) if protocol == "prefix" else 1
    for start in range(0, len(kept), together):
        part = kept[start : start + together]
        known = [None if store is None else store.get(index) for index, _, _ in part]
        if any(r is None for r in known):
            known = [{} for _ in part]
            for freqs, some in zip(tables, passes, strict=True):
                for mine, more in zip(known, _score(lm, part, freqs, some, how), strict=True):
                    mine.update(more)
            if store is not None:
                for (index, _, _), result in zip(part, known, strict=True):
                    store.put(index, result)
        results += known
        if progress is not None:
            progress(len(results), len(kept))
    return {length: merge([r[length] for r in results]) for length in lengths}


class Store:
    """Finished documents in a folder, one .npz each: {length: Perplexity} of that document.

    A file is there whole or not at all. The folder belongs to one (checkpoint, encoding, corpus, protocol).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, index: int) -> dict[int, Perplexity] | None:
        path = self.folder / f"{index:06d}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            return {
                fact["length"]: Perplexity(**fact, **{a: file[f"{fact['length']}/{a}"] for a in _ARRAYS})
                for fact in facts
            }

    def put(self, index: int, results: dict[int, Perplexity]) -> None:
        facts = [{name: getattr(r, name) for name in _FACTS} for r in results.values()]
        arrays = {f"{n}/{name}": getattr(r, name) for n, r in results.items() for name in _ARRAYS}
        with atomic(self.folder / f"{index:06d}.npz") as temporary:
            np.savez(temporary, facts=json.dumps(facts), **arrays)


_FACTS = ("protocol", "length", "stride", "bos_id")
_ARRAYS = ("nll", "scored", "document", "position_nll", "position_scored")


@dataclasses.dataclass(frozen=True)
class _How:
    protocol: str
    stride: int
    bos_id: int | None
    truncate: bool
    pmap: bool


def _check(how: _How, length: int) -> None:
    usable = length - (how.bos_id is not None)
    if how.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {how.protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
    if length < 2:
        raise ValueError(f"a window needs at least 2 positions, got length={length}.")
    if how.stride < 1 or (how.protocol == "sliding" and how.stride > usable):
        raise ValueError(
            f"stride must be between 1 and the tokens of a window ({usable}), or some tokens are never "
            f"scored; got {how.stride}."
        )


def _long_enough(documents, how: _How, length: int, groups) -> list[tuple[int, np.ndarray, int]]:
    """(index, tokens, group) of the documents that the protocol scores at this length."""
    needed = length - (how.bos_id is not None) if how.protocol == "prefix" else 1 + (how.bos_id is None)
    kept = [
        (i, tokens, i if groups is None else groups[i])
        for i, tokens in enumerate(documents)
        if len(tokens) >= needed
    ]
    if not kept:
        raise ValueError(
            f"none of the {len(documents)} documents has the {needed} tokens that the {how.protocol} "
            f"protocol needs at length {length}; give longer documents or a shorter length."
        )
    return kept


def _score(lm, documents, freqs, lengths, how: _How, progress=None) -> list[dict[int, Perplexity]]:
    """Each document's result at every length, from one forward at the longest; `lengths` of more than one
    are prefixes."""
    windows, owner = [], []
    for row, (_, tokens, _) in enumerate(documents):
        cut = cut_windows(tokens, how.protocol, lengths[-1], how.stride, how.bos_id, how.truncate)
        windows += cut
        owner += [row] * len(cut)
    nll = _window_nll(lm, [ids for ids, _ in windows], freqs, lengths[-1], how.pmap, progress)
    owner = np.asarray(owner)
    first = np.asarray([first for _, first in windows])
    sizes = np.asarray([len(ids) for ids, _ in windows])
    results = []
    for row, (_, _, group) in enumerate(documents):
        mine = owner == row
        results.append(
            {
                n: _summarise(nll[mine][:, : n - 1], first[mine], np.minimum(sizes[mine], n), group, n, how)
                for n in lengths
            }
        )
    return results


def _window_nll(lm, windows: list[np.ndarray], freqs, length: int, pmap: bool, progress) -> np.ndarray:
    """f32[W, length-1], zero where a window is shorter. Windows are padded up to one of four sizes, so
    that few shapes are compiled; padding comes last, where causal attention cannot see it."""
    step = max(1, -(-length // 4))
    sizes = np.asarray([min(length, -(-len(ids) // step) * step) for ids in windows])
    wide = np.float64 if lm.config.dtype == "float64" else np.float32
    result = np.zeros((len(windows), length - 1), wide)
    done = 0
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        padded = np.stack([np.pad(windows[i], (0, size - len(windows[i]))) for i in rows])
        for start, values in batched_nll(lm, padded, freqs, pmap):
            result[rows[start : start + len(values)], : size - 1] = values
            done += len(values)
            if progress is not None:
                progress(done, len(windows))
    return result


def _summarise(nll, first, sizes, group: int, length: int, how: _How) -> Perplexity:
    """nll f[W, n-1] at positions 1 … n-1; a window scores positions first … size-1."""
    position = np.arange(1, length)
    scored = (position >= first[:, None]) & (position < sizes[:, None])
    values = np.where(scored, nll, 0).astype(np.float64)
    bins, count = position // BIN, length // BIN + 1
    return Perplexity(
        protocol=how.protocol,
        length=length,
        stride=None if how.protocol == "prefix" else how.stride,
        bos_id=how.bos_id,
        nll=values.sum(axis=1),
        scored=scored.sum(axis=1),
        document=np.full(len(nll), group),
        position_nll=np.bincount(bins, values.sum(axis=0), count),
        position_scored=np.bincount(bins, scored.sum(axis=0), count).astype(np.int64),
    )
