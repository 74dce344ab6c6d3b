"""A model and data small enough to train in a test."""

import numpy as np

from resonance_jax import model, rope, train

CONFIG = model.PRESETS["tiny"].replace(
    vocab_size=32, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, n_layers=2
)
ENCODINGS = [
    rope.frequencies(rope.RopeSpec(head_dim=16)),
    rope.frequencies(rope.RopeSpec(head_dim=16, resonance=True)),
    rope.frequencies(rope.RopeSpec("yarn", head_dim=16, scale=4.0, train_length=16, resonance=True)),
]
OPTIMIZER = train.OptimizerConfig(lr=1e-2, weight_decay=0.1, schedule="cosine", warmup=0.2, clip=1.0)


def batches(step: int, rows: int = 4, length: int = 16) -> dict:
    """Rows that repeat a random pattern of five tokens: positions matter."""
    pattern = np.random.default_rng(step).integers(0, 32, (rows, 5))
    return {"tokens": np.tile(pattern, length // 5 + 1)[:, :length].astype(np.int32)}
