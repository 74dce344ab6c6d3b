"""Options that have a least value, checked before a command reads or makes anything."""

import math
from collections.abc import Sequence

from resonance_jax.command.options import Dataclass

Number = int | float


def check_at_least(config: Dataclass, least: Number, *names: str) -> None:
    """Raise ValueError where an option, or one of its values, is below the least one or not finite.

    Args:
        config: its fields are the options; one that is None is not checked.
        least: the least value that is allowed.
        names: of the fields.
    """
    for name in names:
        for value in _values(getattr(config, name)):
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{option(name)} must be at least {least}, got {value}.")


def check_some(config: Dataclass, *names: str) -> None:
    """Raise ValueError where an option that is a list holds nothing."""
    for name in names:
        if not getattr(config, name):
            raise ValueError(f"{option(name)} must be at least one.")


def option(name: str) -> str:
    """A field as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _values(value: Number | Sequence[Number] | None) -> Sequence[Number]:
    return () if value is None else value if isinstance(value, Sequence) else (value,)
