"""The results of a long evaluation so far, one JSON line each, so that it can be killed and goes on.

Every line names the digest of the identity that made it and carries a checksum. Lines of another identity are
set aside in a file of their own, never mixed in; damaged lines are dropped, and their items done again.
"""

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from resonance_jax.digest import Identity, of_json
from resonance_jax.files import atomic
from resonance_jax.parallel import distributed

Record = Mapping[str, object]
"""One line: a JSON object."""

MADE_BY, CHECK = "made_by", "crc32"
"""Fields that a journal adds to every record: the identity's digest, and a checksum of all other fields."""


class Journal:
    """The records of a .jsonl file that one identity made, appended and on disk when `append` returns.

    A last line that a kill cut off is dropped when the file is opened; `records` holds the others. Of several
    processes the first one reads and writes the file, and all have its records.

    Args:
        path: the file; its folder is made.
        identity: of everything that the records depend on.
    """

    def __init__(self, path: str | Path, identity: Identity) -> None:
        self.path = Path(path)
        self._made_by = of_json(identity)
        self.records: list[Record] = distributed.of_first(self._read)

    def _read(self) -> list[Record]:
        """The records of this identity; the file then holds nothing else."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        read = [_record(line) for line in dict.fromkeys(lines)]  # a line that is there twice counts once
        own = [r for r in read if r is not None and r[MADE_BY] == self._made_by]
        others = [r for r in read if r is not None and r[MADE_BY] != self._made_by]
        damaged = len(read) - len(own) - len(others)
        if damaged:
            warnings.warn(f"{self.path}: {damaged} damaged line(s) dropped; their items are done again.")
        for other in {str(r[MADE_BY]) for r in others}:
            aside = self.path.with_name(f"{self.path.name}.{other[:8]}")
            warnings.warn(
                f"{self.path} holds results of other inputs (weights, encoding, text or settings have "
                f"changed); they are kept in {aside.name}, and everything is done anew."
            )
            _write(aside, [r for r in others if r[MADE_BY] == other])
        if len(own) < len(lines) or whole < len(content):
            _write(self.path, own)
        return own

    def append(self, record: Record) -> None:
        """Add one record."""
        self.extend([record])

    def extend(self, records: Iterable[Record]) -> None:
        """Add records in one write: a kill keeps the first of them or all."""
        made = [_sealed({**record, MADE_BY: self._made_by}) for record in records]
        if jax.process_index() == 0:
            with self.path.open("ab") as file:
                file.write(_lines(made))
                file.flush()
                os.fsync(file.fileno())
        self.records += made


def _sealed(record: Record) -> Record:
    return {**record, CHECK: _checksum(record)}


def _checksum(record: Record) -> int:
    fields = {name: value for name, value in record.items() if name != CHECK}
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def _record(line: bytes) -> Record | None:
    """The record in one line, None where it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get(MADE_BY), str)
    return record if whole and record.get(CHECK) == _checksum(record) else None


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _write(path: Path, records: Iterable[Record]) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(_lines(records))
