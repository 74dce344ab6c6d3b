"""The encoding of a checkpoint, stated again under another name, scale or training length."""

import dataclasses
from typing import overload

from resonance_jax.rope.layer_specs import LayerSpecs, Specs
from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.names import named, parse_name
from resonance_jax.rope.schema import Given, Value
from resonance_jax.rope.spec import RopeSpec
from resonance_jax.rope.tables import frequencies, same


@overload
def restate(
    own: RopeSpec, name: str, *, scale: Given[float | None] = None, train_length: Given[int | None] = None
) -> RopeSpec: ...
@overload
def restate(
    own: Specs, name: str, *, scale: Given[float | None] = None, train_length: Given[int | None] = None
) -> Specs: ...
def restate(
    own: Specs, name: str, *, scale: Given[float | None] = None, train_length: Given[int | None] = None
) -> Specs:
    """The encoding to run a checkpoint under, made from the one that it states for itself.

    Head size, base and partial rotation are always the checkpoint's. The method that it already has keeps
    its options, and its scale unless another one is given; any other method starts from its own defaults.
    Resonance follows the name alone: "yarn" of a resonant checkpoint is plain YaRN.

    Args:
        own: the encoding that the checkpoint states. Of LayerSpecs, those of the layers that see everything
            are stated again; layers with a window keep theirs.
        name: "own", which gives `own` unchanged whatever else is asked; otherwise a name of rope.named.
        scale: the paper's s, left out for methods that take none.
        train_length: the paper's L in positions; by default what `own` states.

    Raises:
        ValueError: for an unknown name; for a method that takes a scale, is not the checkpoint's own and got
            none; for a method that needs a train_length that nothing states; and for another scale where
            `own` states an option that belongs to the old one: LongRoPE's factors, or an attention_factor
            (but one that the method computes anyway is computed anew).
    """
    if name == "own":
        return own
    if isinstance(own, LayerSpecs):
        return own.map(lambda each: restate(each, name, scale=scale, train_length=train_length))
    method, resonance = parse_name(name)
    train_length = own.train_length if train_length is None else train_length
    if method == own.method:
        again = dataclasses.replace(own, resonance=resonance, train_length=train_length)
        if scale is None or scale == own.scale or not METHODS[method].takes_scale:
            return again
        return _rescaled(again, scale)
    if scale is None and METHODS[method].takes_scale:
        raise ValueError(f"{name!r} needs a scale (the paper's s): the checkpoint's own is {own.title}'s.")
    return named(
        name,
        head_dim=own.head_dim,
        base=own.base,
        partial_rotary_factor=own.partial_rotary_factor,
        train_length=train_length,
        scale=scale,
    )


def _rescaled(own: RopeSpec, scale: Given[float]) -> RopeSpec:
    """The same at another scale, without the options that belong to the old one."""
    belong = {name: option.default for name, option in own.method_record.options.items() if option.of_scale}
    stated = [name for name, _ in own.options if name in belong]
    kept = [name for name in stated if not _computed_anyway(own, name, belong[name])]
    if kept:
        raise ValueError(
            f"the checkpoint states {', '.join(kept)} for scale {own.scale}, not for {scale}; leave the "
            "scale out, or name another method."
        )
    return dataclasses.replace(own, scale=scale, **{name: belong[name] for name in stated})


def _computed_anyway(own: RopeSpec, name: str, default: Value) -> bool:
    """Whether an option may be left out: the method computes the same table without it."""
    try:
        without = dataclasses.replace(own, **{name: default})
    except ValueError:  # a method may need it
        return False
    return same(frequencies(own, own.train_length), frequencies(without, own.train_length))
