"""Which documents, and which pieces of them, are scored."""

import numpy as np
import pytest

from resonance_jax import data, evaluate
from resonance_jax.data.files import Document

BYTES = data.tokenizer("bytes")
SHORT, LONG = Document("a", "abc"), Document("b", "abcdefghij")
IDS = Document("c", "", np.arange(7, dtype=np.int32))


def test_the_first_documents_that_are_long_enough():
    found = evaluate.first_documents([SHORT, LONG, IDS, LONG], BYTES, count=2, min_tokens=5)
    assert [len(tokens) for tokens in found] == [10, 7]
    assert len(evaluate.first_documents([SHORT, IDS], BYTES, count=9)) == 2


def test_pieces_do_not_overlap_and_know_their_document():
    pieces, owners = evaluate.cut_pieces([SHORT, LONG, IDS], BYTES, size=3, per_document=2, count=3)
    assert owners == [0, 1, 1, 2, 2]
    assert [BYTES.decode(piece) for piece in pieces[:3]] == ["abc", "abc", "def"]
    assert pieces[4].tolist() == [3, 4, 5]


def test_no_document_is_long_enough():
    with pytest.raises(ValueError, match="no document to evaluate has the 20 tokens that one piece needs"):
        evaluate.cut_pieces([SHORT, LONG], BYTES, size=20, per_document=2, count=3)
