"""The encoding that a checkpoint is run under: its own, or another one on its own dimensions."""

import dataclasses

from resonance_jax import rope


def encoding(
    own: rope.RopeSpec, name: str, scale: float | None = None, train_length: int | None = None
) -> rope.RopeSpec:
    """`own` for the name "own", otherwise the encoding of a name (rope.named) with own's head size and base.

    scale: the paper's s, for static methods. train_length: the paper's L, by default what `own` states. The
    method that `own` already has keeps its settings; only resonance follows the name. Raises ValueError for
    an unknown name and where the method needs a train_length that nothing states.
    """
    if name == "own":
        return own
    spec = rope.named(
        name,
        head_dim=own.head_dim,
        base=own.base,
        partial_rotary_factor=own.partial_rotary_factor,
        train_length=train_length or own.train_length,
        scale=scale,
    )
    return dataclasses.replace(own, resonance=spec.resonance) if spec.method == own.method else spec
