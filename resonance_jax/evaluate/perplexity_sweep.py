"""Perplexity against context length, at one length or at many, on documents of token ids.

evaluate.perplexity_protocols says what the named protocols score, evaluate.perplexity_result what comes out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int64, Integer

from resonance_jax import rope
from resonance_jax.digest import Identity
from resonance_jax.evaluate.nll_over_devices import NllOverDevices
from resonance_jax.evaluate.nll_store import Store, document_digest, packed, unpacked
from resonance_jax.evaluate.perplexity_protocols import Windowing
from resonance_jax.evaluate.perplexity_result import BIN, Perplexity, merge
from resonance_jax.model.decoder import Decoder
from resonance_jax.model.digest import weights_digest
from resonance_jax.model.lowering import default_precision
from resonance_jax.parallel import distributed

Documents = Iterable[Integer[np.ndarray, "_"]]
"""Token ids of each document, without special tokens."""
Progress = Callable[..., None]
"""Called as progress(done, total)."""


@dataclasses.dataclass(frozen=True)
class _Document:
    """A document that is scored: its number, its token ids, and the text that it was cut from."""

    index: int
    tokens: Integer[np.ndarray, "_"]
    group: int

    def identity(self) -> Identity:
        """What of a result depends on the document."""
        return {"document": document_digest(self.tokens), "group": int(self.group)}


def perplexity(
    lm: Decoder,
    documents: Documents,
    freqs: rope.Tables,
    protocol: str = "prefix",
    length: int = 4096,
    stride: int = 256,
    bos_id: int | None = None,
    truncate: bool = False,
    groups: Sequence[int] | None = None,
    pmap: bool = False,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of documents at one length under one table of frequencies.

    Args:
        lm: the decoder.
        documents: token ids of each document.
        freqs: the table; a dynamic encoding's has to be that of `length`.
        protocol: "prefix", "sliding" or "yarn" (evaluate.perplexity_protocols).
        length: positions of a window, BOS included.
        stride: tokens that a window advances by; `prefix` has a single window.
        bos_id: put in front of every window; None: no BOS, and a window's first token is not scored.
        truncate: one window per document.
        groups: for each document the text it was cut from, which the bootstrap resamples; default: itself.
        pmap: split batches over this host's devices. On lm's mesh, if it has one, the devices of the axis
            `data` share the documents, and cut the time of those that are left over.
        progress: called with the windows done and all windows.

    Raises:
        ValueError: for an unknown protocol, a stride that would leave tokens unscored, or no document that
            is long enough.
    """
    how = Windowing(protocol, stride, bos_id, truncate)
    how.check(length)
    kept = _long_enough(list(documents), how, length, groups)
    over = NllOverDevices(lm, pmap)
    return merge([r[length] for r in _score(over, kept, freqs, [length], how, progress)])


def sweep(
    lm: Decoder,
    documents: Documents,
    spec: rope.Specs,
    lengths: Sequence[int],
    protocol: str = "prefix",
    stride: int = 256,
    bos_id: int | None = None,
    truncate: bool = False,
    groups: Sequence[int] | None = None,
    pmap: bool = False,
    progress: Progress | None = None,
    store: Store | None = None,
) -> dict[int, Perplexity]:
    """Perplexity of the same documents at every length: those that are long enough for the longest.

    A static encoding under `prefix` costs one forward per document, because later tokens cannot change
    earlier ones. A dynamic encoding gets a table and a forward of its own for each length.

    Args:
        lm: the decoder.
        documents: token ids of each document.
        spec: the encoding.
        lengths: positions of a window, BOS included.
        protocol, stride, bos_id, truncate, groups, pmap: as for `perplexity`.
        progress: called with the documents done and all documents.
        store: keeps every finished document; one that it has is not computed again. Of several processes the
            first one's is asked and written to.

    Raises:
        ValueError: as `perplexity` does.
    """
    how = Windowing(protocol, stride, bos_id, truncate)
    lengths = sorted(set(lengths))
    for length in lengths:
        how.check(length)
    kept = _long_enough(list(documents), how, lengths[-1], groups)
    over = NllOverDevices(lm, pmap)
    # With one window per document, a shorter context is a prefix of a longer one.
    one_window = protocol == "prefix" or truncate
    at_once = one_window and not spec.dynamic
    passes = [lengths] if at_once else [[length] for length in lengths]
    tables = [rope.frequencies(spec, length=some[-1]) for some in passes]
    made_by = None if store is None else _identity(lm, tables, passes, how)
    results: dict[int, dict[int, Perplexity]] = {}
    if progress is not None:
        progress(0, len(kept))
    # As many documents together as fill a batch of the longest windows, so that few are lost to a kill. Of
    # equal sizes, so that little is padding.
    by_size = sorted(kept, key=lambda document: -len(document.tokens)) if truncate else kept
    together = over.together(lengths[-1]) if one_window else 1
    for start in range(0, len(kept), together):
        part = by_size[start : start + together]
        identities = [{**(made_by or {}), **document.identity()} for document in part]
        stored = _stored(store, part, identities)
        known = [result for result in stored if result is not None]
        if len(known) < len(part):
            known = [{} for _ in part]
            for freqs, some in zip(tables, passes, strict=True):
                for mine, more in zip(known, _score(over, part, freqs, some, how), strict=True):
                    mine.update(more)
            if store is not None and jax.process_index() == 0:
                for document, identity, result in zip(part, identities, known, strict=True):
                    if all(each.finite for each in result.values()):
                        store.put(document.index, identity, result)
        results |= {document.index: result for document, result in zip(part, known, strict=True)}
        if progress is not None:
            progress(len(results), len(kept))
    ordered = [results[document.index] for document in kept]
    return {length: merge([result[length] for result in ordered]) for length in lengths}


def _stored(
    store: Store | None, documents: Sequence[_Document], identities: Sequence[Identity]
) -> list[dict[int, Perplexity] | None]:
    """What the store has of some documents, None for each that it has not. Every process is given what the
    first one's store has."""

    def found() -> list[dict[int, Perplexity] | None]:
        return [
            None if store is None else store.get(document.index, identity)
            for document, identity in zip(documents, identities, strict=True)
        ]

    if jax.process_count() == 1:
        return found()
    texts = distributed.of_first(lambda: [None if kept is None else packed(kept) for kept in found()])
    return [None if text is None else unpacked(text) for text in texts]


def _told(tables: rope.Tables) -> list[object]:
    """What tells an encoding apart."""
    if isinstance(tables, dict):
        return [{name: _told(own) for name, own in tables.items()}]
    return [rope.fingerprint(tables), np.asarray(tables.wavelength).tolist()]


def _identity(
    lm: Decoder, tables: Sequence[rope.Tables], passes: Sequence[Sequence[int]], how: Windowing
) -> Identity:
    """Everything that a document's results depend on beside the document itself."""
    return {
        "weights": weights_digest(lm.params),
        "decoder": lm.config.to_dict(),
        "encoding": [_told(table) for table in tables],
        "lengths": [list(some) for some in passes],
        "protocol": dataclasses.asdict(how),
        "platform": jax.default_backend(),
        "precision": default_precision(),
    }


def _long_enough(
    documents: Sequence[Integer[np.ndarray, "_"]], how: Windowing, length: int, groups: Sequence[int] | None
) -> list[_Document]:
    """The documents that the protocol scores at this length."""
    needed = how.tokens_needed(length)
    kept = [
        _Document(i, tokens, i if groups is None else groups[i])
        for i, tokens in enumerate(documents)
        if len(tokens) >= needed
    ]
    if not kept:
        raise ValueError(
            f"none of the {len(documents)} documents has the {needed} tokens that the {how.protocol} "
            f"protocol needs at length {length}; give longer documents or a shorter length."
        )
    return kept


def _score(
    over: NllOverDevices,
    documents: Sequence[_Document],
    freqs: rope.Tables,
    lengths: Sequence[int],
    how: Windowing,
    progress: Progress | None = None,
) -> list[dict[int, Perplexity]]:
    """Each document's result at every length, from one forward at the longest.

    More than one length only where every shorter window is a prefix of the longest.
    """
    windows, owners = [], []
    for row, document in enumerate(documents):
        cut = how.cut(document.tokens, lengths[-1])
        windows += cut
        owners += [row] * len(cut)
    nll, computed = _window_nll(over, [ids for ids, _ in windows], freqs, lengths[-1], progress)
    owner = np.asarray(owners)
    first = np.asarray([first for _, first in windows])
    sizes = np.asarray([len(ids) for ids, _ in windows])
    results = []
    for row, document in enumerate(documents):
        mine = owner == row
        work = {lengths[-1]: int(computed[mine].sum())}  # the shorter ones cost nothing more
        results.append(
            {
                n: _summarise(
                    nll[mine][:, : n - 1],
                    first[mine],
                    np.minimum(sizes[mine], n),
                    document.group,
                    n,
                    how,
                    work.get(n, 0),
                )
                for n in lengths
            }
        )
    return results


def _window_nll(
    over: NllOverDevices,
    windows: Sequence[Integer[np.ndarray, "_"]],
    freqs: rope.Tables,
    length: int,
    progress: Progress | None,
) -> tuple[Float[np.ndarray, "W {length}-1"], Int64[np.ndarray, "W"]]:
    """NLL in nats of every id of a window but its first, zero where a window is shorter than `length`; and
    the tokens that were computed for it, those that fill a batch up counting with its last window."""
    wide = np.float64 if over.lm.config.dtype == "float64" else np.float32
    result = np.zeros((len(windows), length - 1), wide)
    computed = np.zeros(len(windows), np.int64)
    done = 0
    for batch, values in over.windows(windows, freqs, length):
        numbers = np.asarray(batch.windows)
        width = min(batch.width, length) - 1
        result[numbers, :width] = values[: len(numbers), :width]
        computed[numbers] = batch.width
        computed[numbers[-1]] += (batch.rows - len(numbers)) * batch.width
        done += len(numbers)
        if progress is not None:
            progress(done, len(windows))
    return result, computed


def _summarise(
    nll: Float[np.ndarray, "W {n}-1"],
    first: Integer[np.ndarray, "W"],
    sizes: Integer[np.ndarray, "W"],
    group: int,
    n: int,
    how: Windowing,
    computed: int,
) -> Perplexity:
    """The result of the windows of one document; a window scores its positions first … size-1."""
    position = np.arange(1, n)
    scored = (position >= first[:, None]) & (position < sizes[:, None])
    values = np.where(scored, nll, 0).astype(np.float64)
    bins, count = position // BIN, n // BIN + 1
    return Perplexity(
        protocol=how.protocol,
        length=n,
        stride=None if how.protocol == "prefix" else how.stride,
        bos_id=how.bos_id,
        nll=values.sum(axis=1),
        scored=scored.sum(axis=1),
        document=np.full(len(nll), group),
        position_nll=np.bincount(bins, values.sum(axis=0), count),
        position_scored=np.bincount(bins, scored.sum(axis=0), count).astype(np.int64),
        computed=computed,
    )
