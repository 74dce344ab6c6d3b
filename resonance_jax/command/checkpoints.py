"""Checkpoints and encodings as a command line names them."""

from collections.abc import Sequence
from pathlib import Path

from resonance_jax import rope
from resonance_jax.data.tokenizers import Tokenizer, tokenizer
from resonance_jax.digest import Identity
from resonance_jax.interop.checkpoint import Checkpoint, open_checkpoint
from resonance_jax.interop.named_checkpoints import located


def split_entry(entry: str) -> tuple[str, str]:
    """(name, path) of an entry NAME=PATH or PATH, whose name is then the last part of the path.

    An entry that exists as a file is a path, equals signs and all; otherwise its name ends at the first one.
    """
    name, given, path = entry.partition("=")
    if not given or Path(entry).exists():
        return Path(entry).resolve().name, entry
    return name, path


def named_checkpoints(entries: Sequence[str]) -> dict[str, Checkpoint]:
    """The checkpoints of entries NAME=PATH or PATH by name, opened.

    Raises ValueError when there are none, two share a name, or one cannot be opened.
    """
    named: dict[str, Checkpoint] = {}
    for name, path in map(split_entry, entries):
        if name in named:
            raise ValueError(
                f"two checkpoints share the name {name!r} among {', '.join(entries)}; use NAME=PATH."
            )
        try:
            named[name] = open_checkpoint(path)
        except ValueError as error:
            raise ValueError(f"checkpoint {name}: {error}") from None
    if not named:
        raise ValueError(
            "no checkpoint to score; give --checkpoints PATH (or NAME=PATH): a Hugging Face directory, a "
            "GGUF file or the name of a packaged one."
        )
    return named


def open_if_there(path: str) -> Checkpoint | None:
    """The checkpoint at a path or of a packaged name; None where there is none, for plans that need no file.

    Raises ValueError for a name whose package is not installed, and as open_checkpoint does.
    """
    return open_checkpoint(path) if Path(path).exists() or located(path) else None


def tokenizer_of(checkpoint: Checkpoint, given: str | None, bos: str = "auto") -> Tokenizer:
    """The tokenizer of a command: what --tokenizer gave, or the checkpoint's own.

    Args:
        checkpoint: what the command reads.
        given: the value of --tokenizer; None: it was not given.
        bos: the value of --bos.
    """
    return checkpoint.tokenizer(bos=bos) if given is None else tokenizer(given, bos=bos)


def checkpoint_identity(checkpoint: Checkpoint, tokens: Tokenizer) -> Identity:
    """What a result depends on of a checkpoint: its weights, its shape, its encoding and its tokenizer."""
    return {
        "weights": checkpoint.weights_digest(),
        "decoder": checkpoint.config.to_dict(),
        "encoding": checkpoint.rope.to_dict(),
        "tokenizer": tokens.fingerprint,
        "bos": tokens.bos_id,
    }


def encodings_of(
    own: rope.Specs,
    entries: Sequence[str],
    checkpoint: str,
    checkpoints: Sequence[str],
    length: int,
    scale: float | None = None,
    train_length: int | None = None,
) -> dict[str, rope.Specs]:
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
        name, at, only = entry.partition("@")
        if at and only not in checkpoints:
            raise ValueError(f"encoding {entry!r} names no checkpoint; there are {', '.join(checkpoints)}.")
        if at and only != checkpoint:
            continue
        spec = rope.restate_for_length(own, name, length, scale=scale, train_length=train_length)
        title = f"{spec.title} (own)" if name == "own" else spec.title
        specs[title if len(checkpoints) == 1 else f"{title}, {checkpoint}"] = spec
    return specs


def scale_note(spec: rope.Specs, own: rope.Specs, asked: float | None, length: int) -> str:
    """Which scale an encoding has and where it comes from, for people; an empty text where it has none.

    Where layers differ, the note says which of them have which encoding.

    Args:
        spec: the encoding.
        own: the encoding that the checkpoint states.
        asked: the scale that was asked for.
        length: the longest length in use, in positions.
    """
    if isinstance(spec, rope.LayerSpecs):
        note = scale_note(spec.main, rope.main_spec(own), asked, length)
        return f"{note}; {spec.told()}" if note else spec.told()
    if not rope.METHODS[spec.method].takes_scale:
        return ""
    if (spec.method, spec.scale) == (own.method, own.scale):
        return f"s = {spec.scale:g}, the checkpoint's own"
    if asked is not None:
        return f"s = {spec.scale:g}, as asked"
    return f"s = {spec.scale:g}, from {spec.train_length:,} positions to {length:,}"
