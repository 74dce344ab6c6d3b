"""Which files of a folder are its documents: shards of records, or texts; never both, never its metadata."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from resonance_jax.data.files import Kind, kind_of
from resonance_jax.files import found_at, of_kind, read_json, reason

# Written beside the data by `datasets`, Spark and Dask.
METADATA = (
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json"),
    *("_SUCCESS", "_metadata", "_common_metadata"),
)
# About the data: left out beside records, documents like any other in a folder of texts.
ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog")
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
RECORDS = ("parquet", "arrow", "records")


@dataclass(frozen=True)
class File:
    """A file below a folder: its path, its name (the relative path with forward slashes), what it holds."""

    path: Path
    name: str
    kind: Kind


def folder_files(folder: Path, text_field: str) -> list[File]:
    """The files below a folder that are its documents, sorted by name.

    A folder with records (parquet, arrow, JSON) is read as shards; otherwise every text file counts, and
    binary files (a NUL byte in the first 8 KiB, git's rule) are passed over, as in a source tree. Hidden
    files and folders, lock files and the metadata of datasets are never documents. A folder that `datasets`
    saved must hold the arrow files that its state.json lists, and no others.

    Args:
        folder: an existing folder. Links to folders are followed.
        text_field: the field of records that holds the text.

    Raises:
        ValueError: records stand beside other files that would be left out, a file is no regular file or of
            a kind that is not read here, or there is no document; names the files.
    """
    files, states = [], []
    for path, name in walk(folder, lambda part: not part.startswith("."), follow=True):
        if (found := found_at(path)) != "a file":
            found = "a link to nothing" if found == "missing" else found
            raise ValueError(f"{path} is {found}: remove it from the corpus.")
        if path.name == "state.json":
            states += [path] if (path.parent / "dataset_info.json").is_file() else []
        elif path.name not in METADATA and path.suffix != ".lock" and not _is_cache(path):
            files.append(File(path, name, kind_of(path, text_field)))
    for state in states:
        _check_saved(state, {file.path.name for file in files if file.path.parent == state.parent})
    records = [file for file in files if file.kind in RECORDS]
    others = [file for file in files if file.kind not in RECORDS and not _is_about(file.path)]
    if not records and all(file.kind == "objects" for file in others):
        records, others = others, []
    if records and others:
        raise ValueError(
            f"The folder {folder} holds records ({_some(records)}) and other files ({_some(others)}), which "
            "would be left out: move the one or the other to a folder of their own."
        )
    found = records or [replace(file, kind="text") for file in files if file.kind in ("text", "objects")]
    if not found:
        raise ValueError(
            f"The folder {folder} holds no text file: expected text, JSON lines, parquet or arrow below it."
        )
    return found


def walk(folder: Path, wanted: Callable[[str], bool], follow: bool = False) -> list[tuple[Path, str]]:
    """(path, relative posix path) of everything below a folder but folders, sorted by the relative path.

    Args:
        folder: where to begin.
        wanted: says of a file's or folder's own name whether it counts.
        follow: also look into links to folders, into each folder once.

    Raises:
        ValueError: a folder below cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {reason(error)}.")

    found, seen = [], set()
    for root, directories, names in os.walk(folder, onerror=refuse, followlinks=follow):
        directories[:] = filter(wanted, directories) if (place := os.path.realpath(root)) not in seen else []
        if place not in seen:
            paths = [Path(root, name) for name in names if wanted(name)]
            found += [(path, path.relative_to(folder).as_posix()) for path in paths]
        seen.add(place)
    return sorted(found, key=lambda file: file[1])


def _is_cache(path: Path) -> bool:
    """Whether `datasets` keeps a computed result here, beside the data that it was computed from."""
    beside = ("state.json", "dataset_info.json")
    return path.match("cache-*.arrow") and any((path.parent / name).is_file() for name in beside)


def _is_about(path: Path) -> bool:
    return path.name.lower().split(".")[0] in ABOUT or path.suffix.lower() in PICTURES


def _check_saved(state: Path, there: set[str]) -> None:
    """Refuse a folder of `datasets` that does not hold just the arrow files that its state.json lists."""
    listed = read_json(state).get("_data_files")
    if listed is None:
        return
    entries = of_kind(listed, list, f"The list of data files in {state}")
    names = {str(of_kind(entry, dict, f"A data file in {state}").get("filename")) for entry in entries}
    if missing := sorted(names - there):
        raise ValueError(f"{state} lists {missing[0]}, which is not there: fetch the folder again.")
    if more := sorted(name for name in there - names if name.endswith(".arrow")):
        raise ValueError(f"{state} does not list {more[0]}, which is there: move that file elsewhere.")


def _some(files: list[File]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
