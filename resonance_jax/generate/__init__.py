"""Generation: a cache that knows its encoding, prefill and decoding under jit, greedy and sampled."""

from resonance_jax.generate.cache import Cache, empty
from resonance_jax.generate.decode import Generation, bucket, decode_step, generate, prefill

__all__ = ["Cache", "Generation", "bucket", "decode_step", "empty", "generate", "prefill"]
