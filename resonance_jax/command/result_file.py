"""The file whose presence says that a run is finished, and the inputs that it belongs to."""

import warnings
from collections.abc import Mapping
from typing import Any

from resonance_jax.digest import Identity, differing
from resonance_jax.files import FilePath, read_json, write_json

IDENTITY = "identity"
"""The field of a result that says what made it."""


def kept_result(path: FilePath, identity: Identity) -> dict[str, Any] | None:
    """The result in a run folder, None where there is none that these inputs made.

    A damaged result, and one of other weights, text, encodings or settings, is told of: the run does again
    what no longer holds.

    Args:
        path: of the result.
        identity: of everything that the result depends on.
    """
    if not path.exists():
        return None
    try:
        result = read_json(path)
    except ValueError as error:
        warnings.warn(f"{error} It is made anew.")
        return None
    stated = result.get(IDENTITY)
    changed = differing(stated, identity) if isinstance(stated, Mapping) else ["inputs that it states"]
    if not changed:
        return result
    warnings.warn(f"{path} is of other inputs ({', '.join(changed)} changed): made anew.")
    return None


def keep_result(path: FilePath, identity: Identity, result: Mapping[str, object]) -> None:
    """Write a result with the inputs that made it."""
    write_json(path, {IDENTITY: identity, **result})
