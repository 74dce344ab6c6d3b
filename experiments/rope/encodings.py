"""The encodings that a command names, and those of a checkpoint's layer types."""

import ast
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from configs.rope import Table
from resonance_jax.files import read_json

if TYPE_CHECKING:
    from resonance_jax.rope import Frequencies, RopeSpec

Asked = TypeVar("Asked", bound=Table)


def lengths(scale: float | None, train_length: int, length: int | None) -> tuple[float, int]:
    """(s, L') from whichever was given; 8x where neither was."""
    if scale is None:
        scale = 8.0 if length is None else max(1.0, length / train_length)
    return scale, int(scale * train_length) if length is None else length


def config_at(name: str) -> dict[str, Any] | None:
    """The config.json of a file or a directory; None where the name is neither, as a method's is.

    Raises ValueError for a path at which there is nothing.
    """
    from resonance_jax.interop.hf_config import read_config

    path = Path(name)
    if path.is_dir():
        return read_config(path)
    if path.is_file():
        return read_json(path, remedy="expected a config.json")
    if path.suffix or len(path.parts) > 1:
        raise ValueError(f"there is no file or directory {path}; expected a config.json, or its directory.")
    return None


def stated_in(config: dict[str, Any]) -> "dict[str, RopeSpec]":
    """{label: RopeSpec} of a config.json: the encoding's title, and a comma and the layer type where layers
    differ."""
    from resonance_jax.rope.hf import from_hf, layer_dicts

    specs = {layer_type: from_hf(config, layer_type) for layer_type in layer_dicts(config)}
    return {spec.title + (f", {kind}" if kind else ""): spec for kind, spec in specs.items()}


def with_files(names: Iterable[str], c: Asked) -> "tuple[Asked, dict[str, RopeSpec], list[str]]":
    """(the settings, the encodings of the files among the names, the other names).

    What a file states is taken from it: the head size, the base and the training length of its main encoding
    take the place of the settings', so that methods named beside it are made for that model.
    """
    stated, others, main = {}, [], None
    for name in names:
        config = config_at(name)
        if config is None:
            others.append(name)
            continue
        found = stated_in(config)
        for label, spec in found.items():
            if label in stated:
                raise ValueError(f"two files state {label}; look at one at a time.")
            stated[label] = spec
        main = main or next((s for label, s in found.items() if "full" in label), next(iter(found.values())))
    if main is not None:
        length = main.train_length or c.train_length
        c = dataclasses.replace(c, head_dim=main.head_dim, base=main.base, train_length=length)
    return c, stated, others


def specs_of(names: Iterable[str], c: Table) -> "dict[str, RopeSpec]":
    """{title: RopeSpec} of encodings by name. Raises ValueError for an option that none of them takes."""
    from resonance_jax import rope

    scale, _ = lengths(c.scale, c.train_length, c.length)
    given = {"head_dim": c.head_dim, "base": c.base, "scale": scale, "train_length": c.train_length}
    given["short_factor"] = (1.0,) * (c.head_dim // 2)
    options = options_of(c)
    specs, taken = {}, set()
    for name in names:
        spec = rope.named(name, **given, **options)
        taken |= rope.METHODS[spec.method].options.keys()
        specs[spec.title] = spec
    for option in options.keys() - taken:
        raise ValueError(
            f"none of {', '.join(names) or 'the files'} takes --{option.replace('_', '-')}; leave it out."
        )
    return specs


def options_of(c: Table) -> dict[str, object]:
    """The options of single methods that were given, as flags or as --options NAME=VALUE."""
    from resonance_jax import rope

    names = {name for record in rope.METHODS.values() for name in record.options}
    flags = {name: getattr(c, name) for name in names if getattr(c, name, None) is not None}
    more = {}
    for entry in c.options:
        name, equals, value = entry.partition("=")
        if not equals or name in flags or name in more:
            raise ValueError(f"--options {entry!r}: expected NAME=VALUE, each name once.")
        try:
            more[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            more[name] = value
    return flags | more


def tables_of(
    names: Iterable[str], c: Asked
) -> "tuple[dict[str, RopeSpec], dict[str, Frequencies], int, Asked]":
    """({label: RopeSpec}, {label: Frequencies}, L', the settings that the named ones were made with)."""
    from resonance_jax import rope

    if not names:
        raise ValueError("name at least one encoding, such as yarn or resonance-yarn.")
    c, specs, others = with_files(names, c)
    _, length = lengths(c.scale, c.train_length, c.length)
    specs |= specs_of(others, c)
    return specs, {label: rope.frequencies(spec, length=length) for label, spec in specs.items()}, length, c
