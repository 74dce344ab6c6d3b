"""Files that are either whole or not there, on a disk or in an object store (gs://…, through etils.epath).

On a disk a file is written under a temporary name, then renamed. In an object store an object is there when
its upload is complete, and cannot be appended to.
"""

import contextlib
import glob
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, TypeVar, cast, overload

AnyPath = str | os.PathLike[str]
if TYPE_CHECKING:
    FilePath = Path
else:  # the path of a URL has a Path's methods (etils), but is no Path
    FilePath = PurePath
T = TypeVar("T")

REMEDY = "put back an undamaged copy, or remove the file to have it made anew"


def is_remote(path: AnyPath) -> bool:
    """Whether the path is a URL such as gs://bucket/folder."""
    return "://" in os.fspath(path)


def as_path(path: AnyPath) -> FilePath:
    """A pathlib.Path, or what behaves like one for a URL (etils.epath).

    Raises ValueError for a URL of another kind than an object store's.
    """
    if not is_remote(path):
        return Path(path)
    from etils import epath

    try:
        return cast(Path, epath.Path(path))
    except (KeyError, ValueError):
        raise ValueError(f"{path}: expected a local path, or one that begins with gs:// or s3://.") from None


def reachable(path: AnyPath) -> FilePath:
    """`as_path`, refused with ValueError where nothing can be read or written there at all."""
    file = as_path(path)
    if is_remote(path):
        try:
            file.exists()
        except ImportError as error:
            raise ValueError(f"{path} needs a driver that is not installed: {reason(error)}.") from None
    return file


@contextlib.contextmanager
def atomic(path: AnyPath) -> Iterator[Path]:
    """A temporary local path, moved to `path` when the block ends well and removed when it does not.

    The block must write into the file at that path, not replace it. On a disk, what killed processes left
    behind of the same file is removed first.
    """
    path = as_path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            upload(temporary, path)
        return
    remove_leftovers(path.parent, f".{glob.escape(path.name)}.*.tmp{path.suffix}")
    with scratch_file(path.parent, path.name) as temporary:
        yield temporary
        move(temporary, path)


@contextlib.contextmanager
def scratch_file(folder: Path, name: str) -> Iterator[Path]:
    """An empty hidden file `folder/.NAME.<random>.tmp<suffix of NAME>`, gone after the block.

    It is locked while the block runs, so that `remove_leftovers` can tell it from what a killed process left:
    the operating system releases a lock when its process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / f".{name}.{uuid.uuid4().hex}.tmp{Path(name).suffix}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            _lock(descriptor)
            # Between its creation and its lock another process may have taken it for a leftover.
            if os.fstat(descriptor).st_nlink:
                yield path
                return
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def move(temporary: Path, path: Path) -> None:
    """Rename a file once its content is on the disk, so that a power cut leaves the old or the new one."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files that match a glob pattern and that no living process has locked."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            descriptor = os.open(path, os.O_RDWR)
            try:
                if _lock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether this process has now locked the file; False where another has, or files cannot be locked."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def found_at(path: AnyPath) -> Literal["a file", "a folder", "missing", "a pipe or a device"]:
    """What is at a local path, links followed. ValueError if it cannot be looked at."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as error:  # ValueError: a NUL character in it
        raise ValueError(f"{os.fspath(path)!r} cannot be read: {reason(error)}.") from None
    return "a file" if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def upload(source: FilePath, target: FilePath) -> None:
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
    """Write a text file (UTF-8), whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: AnyPath, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@overload
def read_json(path: AnyPath, *, remedy: str = REMEDY) -> dict[str, object]: ...
@overload
def read_json(path: AnyPath, kind: type[T], remedy: str = REMEDY) -> T: ...
def read_json(path: AnyPath, kind: type = dict, remedy: str = REMEDY) -> object:
    """The value in a JSON file.

    Args:
        path: a local file or an object's URL.
        kind: the type that the value must have.
        remedy: the end of the error sentence, which says what to do.

    Raises:
        ValueError: there is no such file; it is no regular file, empty, cut off, not UTF-8 or not JSON; or
            its value is of another kind.
    """
    file = as_path(path)
    if not is_remote(path) and (found := found_at(path)) != "a file":
        raise ValueError(f"{path} is {found}, expected a JSON file; {remedy}.")
    try:
        value = parse_json(file.read_bytes(), str(path))
        return of_kind(value, kind, str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}.") from None
    except ValueError as error:
        raise ValueError(f"{str(error).removesuffix('.')}; {remedy}.") from None


def parse_json(content: bytes | str, where: str) -> object:
    """The value of a JSON text; a byte order mark in front is dropped.

    Raises:
        ValueError: in one sentence that begins with `where` and says what was found instead of JSON.
    """
    text = content if isinstance(content, str) else decode_utf8(content, where)
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{where} is empty, expected JSON.")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except _SaidTwice as error:
        raise ValueError(
            f"{where} states the key {str(error)!r:.80} twice in one object, with different values; keep one."
        ) from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            found = "it breaks off at its end"
        else:
            place = f"line {error.lineno}, column {error.colno}"
            found = f"{text[error.pos : error.pos + 10]!r} at {place} does not belong there"
        raise ValueError(f"{where} is not JSON: {found}.") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read as JSON.") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise ValueError(f"{where} holds a whole number of thousands of digits.") from None


class _SaidTwice(ValueError):
    """Its text is a key that a JSON object has twice."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Of two different values under one key, each reader would take the one it likes."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if value != found[name]:
                raise _SaidTwice(name)
    return found


def of_kind(value: object, kind: type[T], where: str) -> T:
    """The value itself. ValueError if it is not of the Python type that its reader expects of JSON."""
    if not isinstance(value, kind):
        raise ValueError(f"{where} is {_json_name(type(value))}, expected {_json_name(kind)}.")
    return value


def _json_name(kind: type) -> str:
    names = {dict: "a JSON object", list: "a JSON array", str: "a string", bool: "true or false"}
    return names.get(kind, "null" if kind is type(None) else "a number")


def reason(error: BaseException) -> str:
    """What an exception of another library says, as the end of a sentence of ours: one line, no full stop.

    Names of exceptions inside it, which mean nothing to a user, are dropped.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    said = re.sub(r"\b\w+(Error|Exception): ", "", said)
    return " ".join(said.split())[:300].rstrip(".") or type(error).__name__


def decode_utf8(content: bytes, where: str, start: int = 0) -> str:
    """The text of UTF-8 bytes, of which the first stands at offset `start` of its file.

    Raises:
        ValueError: names `where`, the first byte that is not UTF-8 and its offset.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8: byte {content[error.start]:#04x} at offset {start + error.start}; "
            "convert it to UTF-8 first."
        ) from None


def half_surrogate(text: str) -> int | None:
    """Where a string holds half of a surrogate pair, which JSON can spell and UTF-8 cannot; None: nowhere."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
