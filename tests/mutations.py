"""Mutations of inputs, drawn from a random generator: of JSON values, of JSON texts, of bytes."""

import copy
import json
import random

VALUES = [
    None,
    True,
    0,
    -1,
    3,
    2**31,
    2**70,
    1.5,
    1e999,
    "",
    "x",
    "<s>",
    "\ud800",
    [],
    [1],
    ["a"],
    [[]],
    {},
    {"a": 1},
]
RAW = {
    "@digits": "1" * 5000,
    "@nested": "[" * 100_000 + "]" * 100_000,
    "@nan": "NaN",
    "@huge": "1e400",
    "@tiny": "1e-400",
    "@minus": "-Infinity",
}
"""JSON that Python's own values do not spell, by the name that stands for it."""


def places(value, path=()):
    """The path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inner)[:30]:
        yield (*path, key)
        yield from places(part, (*path, key))


def mutated(value, rng: random.Random, values=VALUES):
    """A copy of a JSON value in which one value is replaced by one of `values`, or removed."""
    value = copy.deepcopy(value)
    *outer, last = rng.choice(list(places(value)))
    inner = value
    for key in outer:
        inner = inner[key]
    if rng.random() < 0.3:
        del inner[last]
    else:
        inner[last] = rng.choice(values)
    return value


def mutated_json(text: str, rng: random.Random) -> str:
    """A JSON object's text: a value replaced or removed, a key renamed or said twice, or bytes damaged."""
    way = rng.random()
    if way < 0.2:
        return mutated_bytes(text.encode(), rng).decode("utf-8", "replace")
    value = json.loads(text)
    key = rng.choice(list(value))
    if way < 0.3:
        again = rng.choice([rng.choice(VALUES), value[key]])
        return f"{json.dumps(value)[:-1]}, {json.dumps(key)}: {json.dumps(again)}}}"
    if way < 0.4:
        return json.dumps({name + "_" if name == key else name: inner for name, inner in value.items()})
    changed = json.dumps(mutated(value, rng, [*VALUES, *RAW]))
    for name, raw in RAW.items():
        changed = changed.replace(f'"{name}"', raw)
    return changed


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with one of them flipped, zeroed or removed, a stretch lost or doubled, cut off, or none left."""
    at = rng.randrange(len(content) or 1)
    end = min(len(content), at + rng.randrange(1, 200))
    return rng.choice(
        [
            content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
            content[:at] + b"\0" + content[at + 1 :],
            content[:at] + content[at + 1 :],
            content[:at] + content[end:],
            content[:end] + content[at:],
            content[:at],
            content + content,
            b"",
        ]
    )
