"""Checkpoints and encodings as a command line names them."""

from collections.abc import Sequence
from pathlib import Path

from resonance_jax import rope


def named_checkpoints(entries: Sequence[str]) -> dict[str, str]:
    """{name: directory} of entries NAME=PATH or PATH, whose name is the directory's.

    Raises ValueError when there are none, two share a name, or one is no directory.
    """
    named = {}
    for entry in entries:
        name, _, path = entry.rpartition("=")
        named[name or Path(path).name] = path
    if not named:
        raise ValueError(
            "no checkpoint to score; give --checkpoints PATH (or NAME=PATH), a Hugging Face directory."
        )
    if len(named) < len(entries):
        raise ValueError(f"two checkpoints share a name among {', '.join(entries)}; use NAME=PATH.")
    for name, path in named.items():
        if not Path(path).is_dir():
            raise ValueError(f"checkpoint {name}: {path} is not a directory; expected one with config.json.")
    return named


def encodings_of(
    own: rope.RopeSpec,
    entries: Sequence[str],
    checkpoint: str,
    checkpoints: Sequence[str],
    length: int,
    scale: float | None = None,
    train_length: int | None = None,
) -> dict[str, rope.RopeSpec]:
    """The encodings that a checkpoint is run under, by a label for people.

    Args:
        own: the encoding that the checkpoint states.
        entries: names of rope.named or "own", each with an optional "@NAME" of the one checkpoint it is for.
        checkpoint: the name of this checkpoint.
        checkpoints: the names of all of them; where there are several, labels end in the checkpoint's.
        length: the longest length in use, in positions.
        scale, train_length: as for rope.restate_for_length.

    Raises:
        ValueError: for an unknown name, "@NAME" of no checkpoint, and as rope.restate_for_length does.
    """
    specs = {}
    for entry in entries:
        name, _, only = entry.partition("@")
        if only and only not in checkpoints:
            raise ValueError(f"encoding {entry!r} names no checkpoint; there are {', '.join(checkpoints)}.")
        if only and only != checkpoint:
            continue
        spec = rope.restate_for_length(own, name, length, scale=scale, train_length=train_length)
        title = f"{spec.title} (own)" if name == "own" else spec.title
        specs[title if len(checkpoints) == 1 else f"{title}, {checkpoint}"] = spec
    return specs


def scale_note(spec: rope.RopeSpec, own: rope.RopeSpec, asked: float | None, length: int) -> str:
    """Which scale an encoding has and where it comes from, for people; nothing where it has none.

    Args:
        spec: the encoding.
        own: the encoding that the checkpoint states.
        asked: the scale that was asked for.
        length: the longest length in use, in positions.
    """
    if not rope.METHODS[spec.method].takes_scale:
        return ""
    if (spec.method, spec.scale) == (own.method, own.scale):
        return f"s = {spec.scale:g}, the checkpoint's own"
    if asked is not None:
        return f"s = {spec.scale:g}, as asked"
    return f"s = {spec.scale:g}, from {spec.train_length:,} positions to {length:,}"
