"""What a kept result belongs to: digests of the inputs that made it, and what differs between two of them.

An identity is a dictionary of plain values: digests of weights, table, tokenizer and text beside the settings
of the protocol, the dtype and the kernel. Everything that is kept and reused carries one. Under another
identity it is computed anew, or refused in a sentence that names what differs; it is never mixed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from resonance_jax.files import FilePath

Identity = Mapping[str, object]
"""Names and values that JSON can say."""

_CHUNK = 1 << 24


def folder_name(text: str) -> str:
    """A text as the name of a folder, never that of another text: a few digits of its hash end it."""
    plain = "".join(c if c.isalnum() else "-" for c in Path(text).name[-60:]).strip("-").lower()
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def of_json(value: object) -> str:
    """SHA-256 (hex) of a value that JSON can say, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=True).encode()).hexdigest()


def of_files(files: Iterable[Path]) -> str:
    """SHA-256 (hex) of the names and the bytes of some files, in the order of their names.

    Always the bytes: half a gigabyte takes about a second, and neither a time nor a size says that a file is
    the one it was.
    """
    total = hashlib.sha256()
    for file in sorted(files, key=lambda each: each.name):
        total.update(f"{file.name}\0{of_file(file)}\0".encode())
    return total.hexdigest()


def of_folder(folder: Path) -> str:
    """SHA-256 (hex) of the paths and the bytes of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return of_json({str(path.relative_to(folder)): of_file(path) for path in files})


def of_file(file: FilePath) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 (hex) of named arrays: names, dtypes, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def differing(kept: Identity, asked: Identity) -> list[str]:
    """The names, dotted where they are nested, under which two identities say different things."""
    a, b = dict(flat(kept)), dict(flat(asked))
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of everything in nested dictionaries, names joined by dots; a tuple is as a list."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, list(value) if isinstance(value, tuple) else value
