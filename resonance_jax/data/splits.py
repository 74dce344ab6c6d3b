"""Train and held-out documents of a corpus that states no splits: by a hash of each document's name."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace

from resonance_jax.data.documents import Document, Item, Reader

HELDOUT_ONE_IN = 10


def split_by_name(read: Reader) -> dict[str, Reader]:
    """Readers of "train" and "heldout", about one document in ten, told by the hash of its name alone.

    Neither is empty where there are two documents. Of a single one the last tenth is held out, cut at a line
    break. Each reader reads the source once, and holds documents back only until it has seen one of each.

    Args:
        read: reads all documents; their names must differ.
    """
    return {name: functools.partial(_split, read, name == "heldout") for name in ("train", "heldout")}


def _split(read: Reader, heldout: bool) -> Iterator[Item]:
    waiting: list[Document] = []
    names_decide = False  # once a name of either kind was seen; before that, one may have to change sides
    for item in read():
        if isinstance(item, Document) and not names_decide:
            waiting.append(item)
            names_decide = _chosen(item.name) != _chosen(waiting[0].name)
            if names_decide:
                yield from (document for document in waiting if _chosen(document.name) == heldout)
                waiting = []
        elif _chosen(item.name) == heldout:
            yield item
    if len(waiting) == 1:
        yield _last_tenth(waiting[0], heldout)
    elif waiting:
        yield from _with_one_moved(waiting, heldout)


def _with_one_moved(documents: list[Document], heldout: bool) -> Iterator[Document]:
    """A split of two or more documents that their names would put on the same side: one changes it."""
    by_rank = sorted(documents, key=lambda document: _rank(document.name))
    all_chosen = _chosen(by_rank[0].name)
    moved = by_rank[-1] if all_chosen else by_rank[0]
    yield from (document for document in documents if ((document is moved) != all_chosen) == heldout)


def _chosen(name: str) -> bool:
    return _rank(name) % HELDOUT_ONE_IN == 0


def _rank(name: str) -> int:
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "big")


def _last_tenth(document: Document, heldout: bool) -> Document:
    text, tokens = document.text, document.tokens
    nine_tenths = len(text) * 9 // 10
    cut = text.rfind("\n", len(text) // 2, nine_tenths) + 1 or nine_tenths
    text = text[cut:] if heldout else text[:cut]
    if tokens is not None:
        if document.text:
            raise ValueError(
                f"The single document {document.name} holds text and tokens: it cannot be cut in two."
            )
        tokens = tokens[len(tokens) * 9 // 10 :] if heldout else tokens[: len(tokens) * 9 // 10]
    return replace(document, text=text, tokens=tokens)
