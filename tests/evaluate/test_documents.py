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
    assert [len(tokens) for tokens in found.documents] == [10, 7]
    assert found.short == 1 and found.warning(2, "a corpus") is None
    assert (
        found.warning(3, "a corpus")
        == "a corpus: 2 documents of the 3 asked for (1 are shorter than 5 tokens)."
    )
    assert len(evaluate.first_documents([SHORT, IDS], BYTES, count=9).documents) == 2
    alone = evaluate.first_documents([SHORT, LONG], BYTES, count=4, min_tokens=5)
    assert "no interval, no verdict" in (alone.warning(4, "a corpus") or "")


def test_an_id_that_the_model_does_not_embed_is_refused_by_name():
    with pytest.raises(ValueError, match=r"The document c holds token 6, outside the vocabulary"):
        evaluate.first_documents([IDS], BYTES, count=2, vocab_size=6)


def test_ids_that_begin_with_bos_get_no_second_one():
    with_bos = Document("d", "", np.array([256, 5, 6, 7], np.int32))
    (ids,) = evaluate.first_documents([with_bos], BYTES, count=1).documents
    assert ids.tolist() == [5, 6, 7]


def test_pieces_do_not_overlap_and_know_their_document():
    pieces, owners = evaluate.cut_pieces([SHORT, LONG, IDS], BYTES, size=3, per_document=2, count=3)
    assert owners == [0, 1, 1, 2, 2]
    assert [BYTES.decode(piece) for piece in pieces[:3]] == ["abc", "abc", "def"]
    assert pieces[4].tolist() == [3, 4, 5]


def test_no_document_is_long_enough():
    with pytest.raises(ValueError, match="no document to evaluate has the 20 tokens that one piece needs"):
        evaluate.cut_pieces([SHORT, LONG], BYTES, size=20, per_document=2, count=3)
