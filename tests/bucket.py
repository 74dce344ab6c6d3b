"""An object store that is a local folder: gs://… through etils.epath, with what an object store refuses."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SCHEME = "gs://"


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[list[str]]:
    """Within the block gs://NAME/… lies in folder/NAME/…; yields the URLs that were opened for writing.

    As in an object store: parents need not exist, nothing can be appended to or renamed.
    """
    from etils import epath

    written: list[str] = []
    remote = lambda path: os.fspath(path).startswith(SCHEME)
    local = lambda path: str(folder / os.fspath(path).removeprefix(SCHEME)) if remote(path) else path

    def redirected(original, path, **options):
        return original(local(path), **options)

    def opened(original, path, mode):
        if remote(path) and "r" not in mode:
            assert "a" not in mode, f"an object cannot be appended to: {path}"
            written.append(os.fspath(path))
            Path(local(path)).parent.mkdir(parents=True, exist_ok=True)
        return original(local(path), mode)

    def moved(original, path, target, **options):
        assert not remote(path) and not remote(target), f"an object cannot be renamed: {path}"
        return original(path, target, **options)

    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "remove", "rmtree", "stat")
    same = dict.fromkeys(names, redirected)
    with epath.testing.mock_epath(**same, open=opened, rename=moved, replace=moved):
        yield written
