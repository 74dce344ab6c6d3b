"""Checksums over a checkpoint's files: written as its last file, compared before it is read.

A manifest inside the step's folder states the step and the SHA-256 of every file. Two files are left out:
Orbax writes them later, when it commits the step, and they hold only the time of the commit.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from resonance_jax.digest import of_file
from resonance_jax.files import FilePath, upload, write_json

MANIFEST = "sha256.json"
AT_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_manifest(folder: FilePath, step: int) -> None:
    """State the step and the checksum of every file of a folder, in the folder itself."""
    sums = {name: of_file(folder / name) for name in _files(folder) if name not in AT_COMMIT}
    write_json(folder / MANIFEST, {"step": step, "files": sums})


def has_manifest(folder: FilePath) -> bool:
    """Whether a folder states checksums; checkpoints of earlier versions do not."""
    return (folder / MANIFEST).exists()


def fault(folder: FilePath, step: int) -> str | None:
    """What is wrong with a step's folder, in a few words; None where checksums find nothing."""
    if not has_manifest(folder):
        return None if any(folder.iterdir()) else "it is empty"
    try:
        stated = json.loads((folder / MANIFEST).read_bytes())
        named, sums = stated["step"], dict(stated["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST} is damaged"
    if named != step:
        return f"it was saved as step {named}"
    there = set(_files(folder))
    for name, wanted in sums.items():
        if name not in there:
            return f"{name} is missing"
        if of_file(folder / name) != wanted:
            return f"{name} is damaged"
    return None


def set_aside(folder: FilePath) -> FilePath:
    """Rename the folder of a step to `<step>.damaged-1`, which no step has, and return the new path."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    if isinstance(folder, Path):
        return folder.rename(aside)
    upload(folder, aside)  # nothing can be renamed in an object store
    folder.rmtree()
    return aside


def _files(folder: FilePath, prefix: str = "") -> Iterator[str]:
    """Every file of a folder but its manifest, by path relative to it."""
    for child in sorted(folder.iterdir(), key=lambda path: path.name):
        name = prefix + child.name
        if child.is_dir():
            yield from _files(child, name + "/")
        elif not name.startswith((MANIFEST, f".{MANIFEST}")):
            yield name
