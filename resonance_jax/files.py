"""Files that are either whole or not there, on a disk or in an object store (gs://…, through etils.epath).

On a disk: written under a temporary name, then renamed. In an object store an object is there when its upload
is complete, and cannot be appended to.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AnyPath = str | os.PathLike


def is_remote(path: AnyPath) -> bool:
    """Whether the path is a URL such as gs://bucket/folder."""
    return "://" in os.fspath(path)


def as_path(path: AnyPath) -> Path:
    """A pathlib.Path, or what behaves like one for a URL (etils.epath)."""
    if not is_remote(path):
        return Path(path)
    from etils import epath

    return epath.Path(path)


@contextlib.contextmanager
def atomic(path: AnyPath) -> Iterator[Path]:
    """A temporary local path, moved to `path` when the block ends well, removed when it does not."""
    path = as_path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            upload(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def upload(source: Path, target: Path) -> None:
    """Copy a local file, or a folder with its config.json last, into an object store.

    A folder is complete when its config.json is there.
    """
    if source.is_dir():
        for child in sorted(source.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
            upload(child, target / child.name)
        return
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 24)


def write_text(path: AnyPath, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: AnyPath, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: AnyPath) -> Any:
    return json.loads(as_path(path).read_text(encoding="utf-8"))
