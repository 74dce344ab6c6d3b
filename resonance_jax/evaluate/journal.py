"""What a long evaluation has found so far, a JSON line an answer: killed at any time, it goes on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Journal:
    """The records of a .jsonl file, appended one by one and on disk when `append` returns.

    A last line that a kill cut off is dropped when the file is opened; `records` holds the others. Raises
    ValueError when a line before the last is no JSON object.
    """

    def __init__(self, path: str | Path):
        self.path, self.records = Path(path), []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            self.records.append(self._record(line, number))
        if whole < len(content):
            os.truncate(self.path, whole)

    def append(self, record: dict[str, Any]) -> None:
        self.extend([record])

    def extend(self, records: Iterable[dict[str, Any]]) -> None:
        """Append all of them in one write: of a batch either a beginning or the whole is kept."""
        records = list(records)
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += records

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} of {self.path} is not a JSON object; move the file away.")
        return record
