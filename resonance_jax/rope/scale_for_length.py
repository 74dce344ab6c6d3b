"""The encoding of a checkpoint under another name, where nobody has to say the scale."""

from typing import overload

from resonance_jax.rope.layer_specs import LayerSpecs, Specs
from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.names import parse_name
from resonance_jax.rope.restatement import restate
from resonance_jax.rope.spec import RopeSpec


@overload
def restate_for_length(
    own: RopeSpec, name: str, length: int, *, scale: float | None = None, train_length: int | None = None
) -> RopeSpec: ...
@overload
def restate_for_length(
    own: Specs, name: str, length: int, *, scale: float | None = None, train_length: int | None = None
) -> Specs: ...
def restate_for_length(
    own: Specs, name: str, length: int, *, scale: float | None = None, train_length: int | None = None
) -> Specs:
    """The encoding to run a checkpoint under at lengths up to `length`: rope.restate with a default scale.

    Without a scale, the checkpoint's own method keeps its own. Any other method takes what reaches the
    length: length / train_length, or 1 where the length is the shorter one.

    Args:
        own: the encoding that the checkpoint states; of LayerSpecs as `restate` says.
        name: "own", or a name of rope.named.
        length: the longest length in use, in positions.
        scale: the paper's s.
        train_length: the paper's L in positions; by default what `own` states.

    Raises:
        ValueError: as `restate` does, and where a scale is missing and nothing states the training length.
    """
    if isinstance(own, LayerSpecs) and name != "own":

        def again(each: RopeSpec) -> RopeSpec:
            return restate_for_length(each, name, length, scale=scale, train_length=train_length)

        return own.map(again)
    if scale is None and name != "own":
        method, _ = parse_name(name)
        if METHODS[method].takes_scale and method != own.method:
            trained = own.train_length if train_length is None else train_length
            if trained is None:
                raise ValueError(
                    f"{name!r} needs a scale (the paper's s), and nothing states the training length that a "
                    "scale could be derived from; give either."
                )
            if trained < 1:
                raise ValueError(f"train_length must be at least 1 position, got {trained}.")
            scale = max(1.0, length / trained)
    return restate(own, name, scale=scale, train_length=train_length)
