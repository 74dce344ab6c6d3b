"""Small LLaMAs for studies that train their models themselves."""

from resonance_jax.model.config import DecoderConfig

BYTES = 258
"""The vocabulary of bytes: 256 of them, BOS and EOS."""


def small_llama(
    d_model: int, n_layers: int, head_dim: int, vocab_size: int = BYTES, d_ff: int | None = None
) -> DecoderConfig:
    """LLaMA's shape with tied embeddings and no grouped heads.

    Args:
        d_model: width D, a multiple of head_dim.
        n_layers: layers.
        head_dim: size of a head.
        vocab_size: tokens.
        d_ff: width of the MLP; default: 8/3 of D, as LLaMA's.
    """
    heads = d_model // head_dim
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=head_dim,
        d_ff=d_model * 8 // 3 if d_ff is None else d_ff,
        tie_embeddings=True,
    )
