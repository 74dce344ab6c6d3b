"""The options of a config: a dataclass whose fields may be dataclasses of resonance_jax.settings in turn.

However deep a config nests, its options have short names: the field `lr` of a nested dataclass is --lr, and
the field `rank` of one with OPTION_PREFIX = "lora" is --lora-rank. The same names, with underscores, are the
keys of a run folder's config.json.
"""

import ast
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Dataclass(Protocol):
    """Any instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)


def option_name(kind: type, field: str) -> str:
    """The name of the option that sets a field of a dataclass."""
    prefix = getattr(kind, "OPTION_PREFIX", None)
    return field if prefix is None else f"{prefix}_{field}"


def options_of(config: Dataclass) -> dict[str, object]:
    """Every option's value by name: {"lr": 2e-5, "lora_rank": 16, …}.

    Raises TypeError where two options have one name.
    """
    values: dict[str, object] = {}
    for name, value in _options(config):
        if name in values:
            raise TypeError(f"{type(config).__name__} has two options of the name {name!r}.")
        values[name] = value
    return values


def defaults_of(config: Dataclass) -> dict[str, object]:
    """Of every option that has a default, its default by name."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Dataclass):
            values |= defaults_of(value)
        elif field.default is not dataclasses.MISSING:
            values[option_name(type(config), field.name)] = field.default
    return values


def with_options(config: Config, **options: object) -> Config:
    """The config with other values for some options, which are named as in `options_of`.

    Raises TypeError for an option that it does not have.
    """
    if unknown := options.keys() - options_of(config).keys():
        raise TypeError(f"{type(config).__name__} has no option {', '.join(sorted(unknown))}.")
    return _replaced(config, options)


def _replaced(config: Config, options: dict[str, object]) -> Config:
    """The config with those of the options that it has."""
    changes = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), option_name(type(config), field.name)
        if isinstance(value, Dataclass):
            changes[field.name] = _replaced(value, options)
        elif name in options:
            changes[field.name] = options[name]
    return dataclasses.replace(config, **changes)


def _options(config: Dataclass) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Dataclass):
            yield from _options(value)
        else:
            yield option_name(type(config), field.name), value


def stated_options(entries: Sequence[str]) -> dict[str, object]:
    """Options given as entries NAME=VALUE: numbers, True, False and None as such, other values as text.

    Raises ValueError for an entry without a name or an equals sign.
    """
    stated: dict[str, object] = {}
    for entry in entries:
        name, given, value = entry.partition("=")
        if not (name and given):
            raise ValueError(f"expected NAME=VALUE, got {entry!r}.")
        try:
            stated[name.strip("-").replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            stated[name.strip("-").replace("-", "_")] = value
    return stated


def option_words(options: Mapping[str, object]) -> list[str]:
    """Options as they are written on a command line: a flag or its --no-, several words for a tuple."""
    words: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple | list) else (value,))]
    return words
