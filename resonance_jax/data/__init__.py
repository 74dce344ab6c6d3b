"""Documents, tokens and batches: corpora, tokenizers, token files, PosGen sequences, L-Eval tasks."""

from resonance_jax.data.corpora import Corpus, Document, corpus

__all__ = ["Corpus", "Document", "corpus"]
