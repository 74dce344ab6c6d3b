"""The file whose presence says that a run is finished, and the inputs that it belongs to."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

from resonance_jax.digest import Identity, differing, of_json
from resonance_jax.files import FilePath, read_json, write_json

IDENTITY = "identity"
"""The field of a result that says what made it."""
CHECKSUM = "checksum"
"""The field that holds a checksum of all others."""


def kept_result(path: FilePath, identity: Identity) -> dict[str, Any] | None:
    """The result in a run folder, None where there is none that these inputs made.

    A damaged result, and one of other weights, text, encodings or settings, gets a warning that says so, and
    the run makes it anew.

    Args:
        path: where the result lies.
        identity: of everything that the result depends on.
    """
    if not path.exists():
        return None
    try:
        result = read_json(path)
    except ValueError as error:
        warnings.warn(f"{error} It is made anew.")
        return None
    if result.pop(CHECKSUM, None) != of_json(result):
        warnings.warn(f"{path} is damaged or was edited: made anew.")
        return None
    stated = result.get(IDENTITY)
    identity = json.loads(json.dumps(identity))  # tuples become lists, as in what was read
    changed = differing(stated, identity) if isinstance(stated, Mapping) else ["inputs that it states"]
    if not changed:
        return result
    warnings.warn(f"{path} is of other inputs ({', '.join(changed)} changed): made anew.")
    return None


def keep_result(path: FilePath, identity: Identity, result: Mapping[str, object]) -> None:
    """Write a result with the inputs that made it and a checksum over both."""
    whole = json.loads(json.dumps({IDENTITY: identity, **result}))  # as it will be read
    write_json(path, {**whole, CHECKSUM: of_json(whole)})
