"""Encodings by name, as people write them: "ResonanceYaRN", "Resonance YaRN" and "resonance-yarn" are one."""

import re
from typing import Any

from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.spec import RopeSpec


def named(name: str, **settings: object) -> RopeSpec:
    """The encoding of a name such as "rope", "yarn", "resonance-yarn" or "Resonance Dynamic NTK".

    Args:
        name: a method's name or title, with or without "resonance" before it; case, spaces and punctuation do
            not matter. "resonance" alone is Resonance RoPE.
        settings: settings of RopeSpec. One set of them serves many names: those that the method does not
            take, and those that are None, are left out.

    Raises:
        ValueError: for an unknown name, for a setting that no method takes, and as RopeSpec does.
    """
    method, resonance = parse_name(name)
    known = _COMMON.union(*(record.settings for record in METHODS.values())) - {"length"}
    if unknown := settings.keys() - known:
        raise ValueError(
            f"no method takes {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}."
        )
    takes = _COMMON | METHODS[method].settings
    chosen: dict[str, Any] = {
        key: value for key, value in settings.items() if key in takes and value is not None
    }
    return RopeSpec(**(chosen | {"method": method, "resonance": resonance}))


_COMMON = frozenset({"method", "head_dim", "base", "train_length", "resonance", "partial_rotary_factor"})
"""The settings that every method takes."""


def parse_name(name: str) -> tuple[str, bool]:
    """(method, resonance) of a name, as named() reads it. Raises ValueError for an unknown one."""
    methods: dict[str, str] = {}
    for method, record in METHODS.items():
        methods |= {_squeezed(other): method for other in (method, record.title, *record.aliases)}
    squeezed = _squeezed(name)
    if squeezed in methods:
        return methods[squeezed], False
    if squeezed == "resonance":
        return "default", True
    plain = squeezed.removeprefix("resonance")
    if plain != squeezed and plain in methods:
        return methods[plain], True
    known = ", ".join("rope" if method == "default" else method.replace("_", "-") for method in METHODS)
    raise ValueError(f"unknown encoding {name!r}; expected one of {known}, or resonance-<one of them>.")


def _squeezed(name: str) -> str:
    """A name without what people write differently: case, spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
