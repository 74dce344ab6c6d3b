"""The results of a long evaluation so far, one JSON line each, so that it can be killed and goes on."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

Record = Mapping[str, object]
"""One line: a JSON object."""


class Journal:
    """The records of a .jsonl file, appended one by one and on disk when `append` returns.

    A last line that a kill cut off is dropped when the file is opened; `records` holds the others. Raises
    ValueError when a line before the last is no JSON object.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records: list[Record] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            self.records.append(self._record(line, number))
        if whole < len(content):
            os.truncate(self.path, whole)

    def append(self, record: Record) -> None:
        """Add one record."""
        self.extend([record])

    def extend(self, records: Iterable[Record]) -> None:
        """Add records in one write: a kill keeps the first of them or all."""
        records = list(records)
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += records

    def _record(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} of {self.path} is not a JSON object; move the file away.")
        return record
