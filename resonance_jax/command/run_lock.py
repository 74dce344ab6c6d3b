"""One process at a time in a run folder: a lock that the operating system releases when its holder dies."""

import contextlib
import json
import os
import platform
from pathlib import Path

LOCK = ".lock"

_held: dict[str, int] = {}
"""The locks of this process: file -> descriptor, open until the process ends."""


def hold(folder: Path) -> None:
    """Lock a folder until this process ends.

    Raises ValueError naming the process that has it. Where files cannot be locked (some network disks),
    nothing is locked.
    """
    file = str((folder / LOCK).resolve())
    if file in _held:
        return
    try:
        import fcntl
    except ImportError:  # no Unix
        return
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise ValueError(
            f"{folder} is in use by {holder}; wait for it, stop it, or choose another --run-dir."
        ) from None
    except OSError:
        os.close(descriptor)
        return
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps({"process": os.getpid(), "host": platform.node()}).encode())
    _held[file] = descriptor


def _holder(descriptor: int) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        stated = json.loads(os.read(descriptor, 1000))
        return f"process {int(stated['process'])} on {stated['host']}"
    return "another process"
