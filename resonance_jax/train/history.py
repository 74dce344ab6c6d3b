"""What a run logged: metrics.jsonl, one record a line, which a resumed run continues from its checkpoint."""

import json
import time
from pathlib import Path
from typing import Any

from resonance_jax.files import AnyPath, as_path, is_remote, write_text

REWRITE_SECONDS = 30.0
"""Between two rewritings of a log in an object store, where nothing can be appended."""


class History:
    """The records so far: those of the file up to `step`; what was logged after it is dropped.

    On a disk `flush` appends. In an object store it writes the whole file anew, at most every
    REWRITE_SECONDS unless it is `due`, which a run says with every checkpoint: a kill loses no record that
    would not be logged again. path None: nothing is written (not the first process).
    """

    def __init__(self, path: AnyPath | None, step: int):
        self.records = [] if path is None else _read_until(as_path(path), step)
        self._path = path
        self._rewrite()

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def flush(self, due: bool = False) -> None:
        if self._path is None or self._written == len(self.records):
            return
        if not is_remote(self._path):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(_lines(self.records[self._written :]))
            self._written = len(self.records)
        elif due or time.monotonic() - self._when > REWRITE_SECONDS:
            self._rewrite()

    def _rewrite(self) -> None:
        if self._path is not None:
            write_text(self._path, _lines(self.records))
        self._written, self._when = len(self.records), time.monotonic()


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _read_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The records up to `step`: what was logged after the last checkpoint will be logged again."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a line cut off by a kill; everything before it is whole
            break
        if record["step"] <= step:
            records.append(record)
    return records
