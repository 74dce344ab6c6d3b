"""A small decoder whose attention chooses, and one encoding of every kind, for the tests of this folder."""

import jax.numpy as jnp
import numpy as np

from resonance_jax import rope
from resonance_jax.model import DecoderConfig
from resonance_jax.model.parameters import map_declared

TRAINED, HEAD = 16, 8
CONFIG = DecoderConfig(vocab_size=61, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=HEAD, d_ff=48)
T5 = CONFIG.replace(
    n_kv_heads=4,
    tie_embeddings=True,
    mlp="relu",
    rope_layout="interleaved",
    attention_scale=1.0,
    head_scale=32**-0.5,
)

SETTINGS = {
    "default": {},
    "linear": {"scale": 4.0},
    "ntk": {"scale": 4.0},
    "dynamic_ntk": {},
    "ntk_by_parts": {"scale": 4.0},
    "yarn": {"scale": 4.0},
    "dynamic_yarn": {},
    "llama3": {"scale": 4.0},
    "longrope": {"scale": 4.0, "short_factor": (1, 1.1, 1.2, 1.3), "long_factor": (1, 2.5, 4, 5.5)},
    "proportional": {"scale": 4.0, "partial_rotary_factor": 0.5},
}
"""Options of one spec of every method in rope.METHODS."""
assert set(SETTINGS) == set(rope.METHODS)

SPECS = [
    rope.RopeSpec(method, head_dim=HEAD, base=100.0, train_length=TRAINED, resonance=resonance, **options)
    for method, options in SETTINGS.items()
    for resonance in (False, True)
]


def title(spec: rope.RopeSpec) -> str:
    return spec.title.replace(" ", "-")


def lively(config: DecoderConfig, seed: int = 1):
    """Parameters large enough that attention chooses and norms differ from one, logits' deviation about 2."""
    rng = np.random.default_rng(seed)
    std = {"embed": 1.0, "layers/q": 0.4, "layers/k": 0.4, "head": 0.35}

    def draw(path, p):
        values = rng.normal(size=p.shape) * (0.2 if p.std == 0 else std.get(path, p.shape[-2] ** -0.5))
        return jnp.asarray(values + (p.std == 0), jnp.promote_types("float32", config.dtype))

    return map_declared(draw, config)
