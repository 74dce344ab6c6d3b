"""The log of a run, metrics.jsonl: one record per line, continued from the checkpoint when a run resumes."""

import hashlib
import json
import os
import time
from typing import Any

from resonance_jax.files import AnyPath, FilePath, as_path, is_remote, write_text

Record = dict[str, Any]
"""One line of the log, see run_loop; a loss that is not finite is written as NaN or Infinity."""

REWRITE_SECONDS = 30.0
"""The least time between two rewritings of a log in an object store, where nothing can be appended."""


class History:
    """The records of a run: those of the file up to the step where it goes on, and what is added.

    On a disk `flush` appends. In an object store it rewrites the whole file, at most every REWRITE_SECONDS
    unless it is `due`. A run says `due` with every checkpoint, so that a kill loses only records that will be
    logged again.

    Args:
        path: the file; None where nothing is read or written (in every process but the first).
        step: where the run goes on; later records are dropped.
        stated: what `digest` was when that step was saved, None if that is not known.

    Raises:
        ValueError: the file does not hold what `stated` is the digest of.
    """

    def __init__(self, path: AnyPath | None, step: int, stated: str | None = None) -> None:
        self.records = [] if path is None else _read_until(as_path(path), step)
        if path is not None and stated not in (None, self.digest()):
            raise ValueError(
                f"{path} is not what it was when step {step} was saved: it is damaged, or was edited. Put a "
                "copy back, or remove the run's folder to begin anew."
            )
        self._path = path
        self._rewrite()

    def add(self, record: Record) -> None:
        """Append a record; `flush` writes it."""
        self.records.append(record)

    def digest(self) -> str:
        """SHA-256 over all records so far."""
        return hashlib.sha256(_lines(self.records).encode()).hexdigest()

    def flush(self, due: bool = False) -> None:
        """Write the records that are not written yet.

        due: without waiting, in an object store; on a disk with fsync, so that a power cut loses nothing.
        """
        count = len(self.records)
        if self._path is None or (self._synced if due else self._written) == count:
            return
        if not is_remote(self._path):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(_lines(self.records[self._written :]))
                if due:
                    file.flush()
                    os.fsync(file.fileno())
                    self._synced = count
            self._written = count
        elif due or time.monotonic() - self._when > REWRITE_SECONDS:
            self._rewrite()

    def _rewrite(self) -> None:
        if self._path is not None:
            write_text(self._path, _lines(self.records))
        self._written = self._synced = len(self.records)
        self._when = time.monotonic()


def _lines(records: list[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _read_until(path: FilePath, step: int) -> list[Record]:
    """The records up to `step`: what was logged after the last checkpoint will be logged again."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            if record["step"] <= step:
                records.append(record)
        except (ValueError, KeyError, TypeError):  # cut off by a kill; everything before it is whole
            break
    return records
