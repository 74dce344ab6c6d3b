"""Generation: a cache that knows its encoding, prefill and decoding under jit, greedy and sampled."""

from resonance_jax.generate.cache import Cache, empty
from resonance_jax.generate.decode import Generation, decode_step, generate
from resonance_jax.generate.prefilling import bucket, prefill
from resonance_jax.generate.shared_prefix import SharedPrefix, share

__all__ = [
    "Cache",
    "Generation",
    "SharedPrefix",
    "bucket",
    "decode_step",
    "empty",
    "generate",
    "prefill",
    "share",
]
