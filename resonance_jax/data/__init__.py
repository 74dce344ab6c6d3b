"""Documents, tokens and batches: corpora, tokenizers, token files, PosGen sequences, L-Eval tasks."""

from resonance_jax.data import leval, posgen
from resonance_jax.data.corpora import Corpus, corpus
from resonance_jax.data.documents import Document, LeftOut, LeftOutWarning
from resonance_jax.data.tokenizers import Tokenizer, tokenizer
from resonance_jax.data.tokens import Batches, TokenFile, token_file

__all__ = [
    "Batches",
    "Corpus",
    "Document",
    "LeftOut",
    "LeftOutWarning",
    "TokenFile",
    "Tokenizer",
    "corpus",
    "leval",
    "posgen",
    "token_file",
    "tokenizer",
]
