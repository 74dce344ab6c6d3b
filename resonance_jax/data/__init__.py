"""Documents, tokens and batches: corpora, tokenizers, token files, PosGen sequences, L-Eval tasks."""

from resonance_jax.data import leval, posgen
from resonance_jax.data.batches import Batches
from resonance_jax.data.corpora import Corpus, corpus
from resonance_jax.data.documents import Document, LeftOut, LeftOutWarning
from resonance_jax.data.ids import check_ids, document_ids, end_ids_within, prompt_ids, with_bos, without_bos
from resonance_jax.data.tokenizers import Tokenizer, tokenizer
from resonance_jax.data.tokens import TokenFile, token_file

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "LeftOut",
    "LeftOutWarning",
    "TokenFile",
    "Tokenizer",
    "check_ids",
    "corpus",
    "document_ids",
    "end_ids_within",
    "leval",
    "posgen",
    "prompt_ids",
    "token_file",
    "tokenizer",
    "with_bos",
    "without_bos",
]
