"""The documents that an evaluation scores, as token ids."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer

from resonance_jax.data.documents import Document
from resonance_jax.data.ids import check_ids, document_ids, without_bos
from resonance_jax.data.tokenizers import Tokenizer
from resonance_jax.digest import of_json
from resonance_jax.evaluate.nll_store import document_digest

Ids = Integer[np.ndarray, "_"]
"""The token ids of one document, without special tokens."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The documents of a corpus that are scored.

    Attributes:
        documents: the token ids of each.
        names: the name of each.
        short: how many documents were passed over because they are shorter than min_tokens.
        min_tokens: how many tokens a document must have.
    """

    documents: tuple[Ids, ...]
    names: tuple[str, ...]
    short: int
    min_tokens: int

    def digest(self) -> str:
        """SHA-256 (hex) over all their ids."""
        return of_json([document_digest(ids) for ids in self.documents])

    def warning(self, asked: int, corpus: str) -> str | None:
        """A sentence where fewer documents were found than asked for, or one, which gives no interval."""
        found = len(self.documents)
        passed = f" ({self.short} are shorter than {self.min_tokens:,} tokens)" if self.short else ""
        if found == 1:
            return f"{corpus}: one document{passed}: no interval, no verdict."
        return f"{corpus}: {found} documents of the {asked} asked for{passed}." if found < asked else None


def first_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    count: int,
    min_tokens: int = 0,
    vocab_size: int | None = None,
) -> Selection:
    """The first `count` documents that have at least min_tokens tokens; fewer where there are no more.

    Args:
        documents: in order.
        tokenizer: encodes texts; of ids that begin with its BOS, that is taken off, because every window puts
            one in front.
        count: how many; at least 1.
        min_tokens: shorter documents are passed over.
        vocab_size: rows of the model's embedding; an id beyond it is refused.

    Raises:
        ValueError: an id outside the vocabulary, naming the document; a count below 1.
    """
    if count < 1:
        raise ValueError(f"--documents must be at least 1, got {count}.")
    found, names, short = [], [], 0
    for document in documents:
        ids = without_bos(document_ids(document, tokenizer), tokenizer.bos_id)
        if vocab_size is not None:
            check_ids(ids, vocab_size, f"The document {document.name}")
        if len(ids) < max(1, min_tokens):
            short += 1
            continue
        found.append(ids)
        names.append(document.name)
        if len(found) == count:
            break
    return Selection(tuple(found), tuple(names), short, min_tokens)


def cut_pieces(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    size: int,
    per_document: int,
    count: int,
    vocab_size: int | None = None,
) -> tuple[list[Ids], list[int]]:
    """Pieces of exactly `size` tokens, and the number of the document that each was cut from.

    Args:
        documents: in the order in which they are taken.
        tokenizer: for documents that come as text.
        size: tokens of a piece.
        per_document: at most so many pieces, which do not overlap, from the head of a document.
        count: at most so many documents, of those with at least one piece.
        vocab_size: as for `first_documents`.

    Raises:
        ValueError: when no document has one piece, and as `first_documents` does.
    """
    pieces: list[Ids] = []
    owners: list[int] = []
    found = first_documents(documents, tokenizer, count, size, vocab_size)
    for number, tokens in enumerate(found.documents):
        cut = min(per_document, len(tokens) // size)
        pieces += [tokens[i * size : (i + 1) * size] for i in range(cut)]
        owners += [number] * cut
    if not pieces:
        raise ValueError(
            f"no document to evaluate has the {size} tokens that one piece needs; give longer documents or a "
            "shorter --length."
        )
    return pieces, owners
