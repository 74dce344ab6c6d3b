"""The documents that an evaluation scores, as token ids."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer

from resonance_jax.data.files import Document
from resonance_jax.data.tokenizers import Tokenizer

Ids = Integer[np.ndarray, "_"]
"""The token ids of one document, without special tokens."""


def token_ids(document: Document, tokenizer: Tokenizer) -> Ids:
    """The ids that a document came with, or else those of its text."""
    return tokenizer.encode(document.text) if document.tokens is None else document.tokens


def first_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, count: int, min_tokens: int = 0
) -> list[Ids]:
    """The first `count` documents that have at least min_tokens tokens; fewer where there are no more."""
    found = []
    for document in documents:
        tokens = token_ids(document, tokenizer)
        if len(tokens) >= min_tokens:
            found.append(tokens)
        if len(found) == count:
            break
    return found


def cut_pieces(
    documents: Iterable[Document], tokenizer: Tokenizer, size: int, per_document: int, count: int
) -> tuple[list[Ids], list[int]]:
    """Pieces of exactly `size` tokens, and the number of the document that each was cut from.

    Args:
        documents: in the order in which they are taken.
        tokenizer: for documents that come as text.
        size: tokens of a piece.
        per_document: at most so many pieces, which do not overlap, from the head of a document.
        count: at most so many documents, of those with at least one piece.

    Raises:
        ValueError: when no document has one piece.
    """
    pieces: list[Ids] = []
    owners: list[int] = []
    for number, tokens in enumerate(first_documents(documents, tokenizer, count, size)):
        cut = min(per_document, len(tokens) // size)
        pieces += [tokens[i * size : (i + 1) * size] for i in range(cut)]
        owners += [number] * cut
    if not pieces:
        raise ValueError(
            f"no document to evaluate has the {size} tokens that one piece needs; give longer documents or a "
            "shorter --length."
        )
    return pieces, owners
