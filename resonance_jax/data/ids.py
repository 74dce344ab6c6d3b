"""Token ids of documents: text or stored ids, BOS in front exactly once, ids that the vocabulary has.

Every reader of a corpus (token files, perplexity, prompts) goes through these functions, so that they agree.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32

from resonance_jax.data.documents import Document

if TYPE_CHECKING:
    from resonance_jax.data.tokenizers import Tokenizer


def document_ids(document: Document, tokenizer: "Tokenizer | None") -> Int32[np.ndarray, "T"]:
    """The ids of one document: of its text where there is a tokenizer, otherwise the ids that it came with.

    Where a record has both, a tokenizer encodes the text: the ids may be another tokenizer's. No BOS is
    added, and stored ids keep the one that they begin with.

    Args:
        document: as a corpus yields it.
        tokenizer: encodes the text; None takes the stored ids.

    Raises:
        ValueError: the document has text only and there is no tokenizer; the text cannot be encoded; or a
            stored id is outside the tokenizer's vocabulary.
    """
    if tokenizer is not None and (document.text or document.tokens is None):
        try:
            return tokenizer.encode(document.text)
        except ValueError as error:
            raise ValueError(f"The document {document.name} cannot be encoded: {error}") from None
    if document.tokens is None:
        raise ValueError(f"The document {document.name} is text: a tokenizer is needed.")
    if tokenizer is not None:
        where = f"The document {document.name}"
        check_ids(document.tokens, tokenizer.vocab_size, where, f"the tokenizer {tokenizer.name}")
    return document.tokens


def with_bos(ids: Int[np.ndarray, "T"], bos_id: int | None) -> Int32[np.ndarray, "U"]:
    """The ids with BOS in front exactly once; ids that begin with it get no second one.

    Args:
        ids: of one document, window or prompt.
        bos_id: usually `tokenizer.bos_id`; None adds nothing.
    """
    ids = np.asarray(ids, np.int32)
    if bos_id is None or (len(ids) and ids[0] == bos_id):
        return ids
    return np.concatenate([np.asarray([bos_id], np.int32), ids])


def prompt_ids(tokenizer: "Tokenizer", text: str, parse_special: bool = False) -> Int32[np.ndarray, "T"]:
    """The ids of a text that opens a sequence: BOS first, where the tokenizer puts one there.

    Args:
        tokenizer: of the model that reads them.
        text: of the prompt.
        parse_special: a special token that the text spells becomes that token, as chat templates want it.
    """
    return with_bos(tokenizer.encode(text, parse_special), tokenizer.bos_id)


def end_ids_within(tokenizer: "Tokenizer", vocab_size: int) -> tuple[int, ...]:
    """The tokens that end an answer, without those beyond the model's embedding: it cannot generate them.

    Args:
        tokenizer: of the model that answers.
        vocab_size: the rows of its embedding.
    """
    return tuple(id for id in tokenizer.eos_ids if id < vocab_size)


def without_bos(ids: Int[np.ndarray, "T"], bos_id: int | None) -> Int32[np.ndarray, "U"]:
    """The ids without the BOS that they may begin with, for a reader that puts BOS in front of each window.

    Args:
        ids: of one document.
        bos_id: usually `tokenizer.bos_id`; None takes nothing away.
    """
    ids = np.asarray(ids, np.int32)
    return ids[1:] if bos_id is not None and len(ids) and ids[0] == bos_id else ids


def check_ids(ids: Int[np.ndarray, "T"], vocab_size: int, where: str, vocabulary: str = "the model") -> None:
    """Refuse ids that a vocabulary does not have.

    Give the ids that occur, not the largest one possible: a padding token beyond the embedding is harmless
    while no text makes it.

    Args:
        ids: any ids, 0 ... 2^31 - 1.
        vocab_size: ids 0 ... vocab_size - 1 are good; of a model, the rows of its embedding.
        where: begins the error sentence, such as "The document a.txt".
        vocabulary: names it in the sentence: "the model", "the tokenizer NAME".

    Raises:
        ValueError: names the place, the largest id and the vocabulary.
    """
    if len(ids) and not 0 <= np.min(ids) <= np.max(ids) < vocab_size:
        id = np.min(ids) if np.min(ids) < 0 else np.max(ids)
        raise ValueError(
            f"{where} holds token {id}, outside the vocabulary of {vocabulary} (0 ... {vocab_size - 1}): it "
            "was tokenized by another tokenizer."
        )
