"""Token ids of a text that opens a sequence."""

import numpy as np
from jaxtyping import Int32

from resonance_jax.data.tokenizers import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str) -> Int32[np.ndarray, "T"]:
    """The token ids of a text, after the tokenizer's BOS where it has one."""
    tokens, bos = tokenizer.encode(text), tokenizer.bos_id
    return tokens if bos is None else np.concatenate([[bos], tokens]).astype(np.int32)
