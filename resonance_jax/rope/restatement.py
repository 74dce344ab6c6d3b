"""The encoding of a checkpoint, stated again under another name, scale or training length."""

import dataclasses
import math

from resonance_jax.rope.spec import RopeSpec, frequencies, named, parse_name, takes_scale


def restate(
    own: RopeSpec, name: str, *, scale: float | None = None, train_length: int | None = None
) -> RopeSpec:
    """The encoding to run a checkpoint under, made from the one that it states for itself.

    Head size, base and partial rotation are always the checkpoint's. The method that it already has keeps
    its options, and its scale unless another one is given; any other method starts from its own defaults.
    Resonance follows the name alone: "yarn" of a resonant checkpoint is plain YaRN.

    Args:
        own: the encoding that the checkpoint states.
        name: "own", which gives `own` unchanged whatever else is asked; otherwise a name of rope.named.
        scale: the paper's s, left out for methods that take none.
        train_length: the paper's L in positions; by default what `own` states.

    Raises:
        ValueError: for an unknown name; for a method that takes a scale, is not the checkpoint's own and got
            none; for a method that needs a train_length that nothing states; for another scale of LongRoPE,
            whose factors belong to one; and for another scale where `own` states an attention_factor, which
            belongs to the old one (one that the method computes anyway is computed anew instead).
    """
    if name == "own":
        return own
    method, resonance = parse_name(name)
    train_length = own.train_length if train_length is None else train_length
    if method == own.method:
        again = dataclasses.replace(own, resonance=resonance, train_length=train_length)
        return again if scale is None or not takes_scale(method) else _rescaled(again, scale)
    if scale is None and takes_scale(method):
        raise ValueError(
            f"{name!r} takes a scale (the paper's s), and the checkpoint's own method is another."
        )
    return named(
        name,
        head_dim=own.head_dim,
        base=own.base,
        partial_rotary_factor=own.partial_rotary_factor,
        train_length=train_length,
        scale=scale,
    )


def _rescaled(own: RopeSpec, scale: float) -> RopeSpec:
    """The same method at another scale."""
    if scale == own.scale:
        return own
    if own.method == "longrope":
        raise ValueError(
            f"the checkpoint's longrope factors belong to scale {own.scale:g}, not {scale:g}; "
            "leave the scale out, or name another method."
        )
    stated = own.attention_factor
    if stated is not None:
        own = dataclasses.replace(own, attention_factor=None)
        computed = float(frequencies(own, own.train_length).attention_factor)
        if not math.isclose(stated, computed, rel_tol=1e-6):
            raise ValueError(
                f"the checkpoint's attention_factor={stated:g} belongs to scale {own.scale:g}, "
                f"not {scale:g}; leave the scale out, or name another method."
            )
    return dataclasses.replace(own, scale=scale)
