"""A griffe extension: an entry of a docstring's section that stands for several names becomes one for each.

"q, k: queries and keys." is how this library writes it; griffe would take k for the type of q.
"""

import re
from typing import Any

import griffe

SEVERAL = re.compile(
    r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \w+)+):(?P<says> .*(?:\n(?P=indent) +\S.*)*)", re.M
)
SECTION = re.compile(r"^(?:Args|Attributes):\n(?: +\S.*\n?|\n(?= ))+", re.M)


def one_by_one(docstring: str) -> str:
    """The docstring with an entry for each name in its sections of arguments and attributes."""

    def entries(entry: re.Match[str]) -> str:
        return "\n".join(f"{entry['indent']}{name}:{entry['says']}" for name in entry["names"].split(", "))

    return SECTION.sub(lambda section: SEVERAL.sub(entries, section[0]), docstring)


class OneByOne(griffe.Extension):
    """Rewrites every docstring before griffe parses it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = one_by_one(obj.docstring.value)
