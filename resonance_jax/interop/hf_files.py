"""The safetensors files of a Hugging Face directory: found, opened and mapped into memory, but not read."""

import json
import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import safetensors

from resonance_jax.files import of_kind, parse_json, read_json

FETCH = "fetch it again"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@runtime_checkable
class TensorSlice(Protocol):
    """One stored tensor, of which parts are read on demand: what safetensors' get_slice gives."""

    def get_shape(self) -> list[int]:
        """Its shape as it is stored."""
        ...

    def get_dtype(self) -> str:
        """Its dtype by safetensors' name, such as "F32"."""
        ...

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        """A part of it, read from the file."""
        ...


def open_tensors(folder: Path) -> dict[str, TensorSlice]:
    """Every tensor of a model directory by name, mapped but not read.

    Where an index names the file of a tensor, that file's is taken, whatever other files hold. Raises
    ValueError naming the file or the tensor when the weights are pickled or missing, a file is damaged or not
    there, or the index places a tensor where it is not.
    """
    files, placed = _placed(folder)
    held: dict[str, TensorSlice] = {}
    for file in files:
        opened = _open(file)
        for name in opened.keys():  # noqa: SIM118
            if placed.get(name, file.name) == file.name:
                held.setdefault(name, opened.get_slice(name))
    for name, file in placed.items():
        if name not in held:
            raise ValueError(f"{folder / INDEX} places tensor {name} in {file}, which lacks it.")
    return held


def weight_files(folder: Path) -> list[Path]:
    """The files that a model directory's weights are read from; raises ValueError as open_tensors does."""
    files, placed = _placed(folder)
    return [*files, folder / INDEX] if placed else files


def _placed(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a directory, and where its index, if it is read, places each tensor.

    A model.safetensors beside an index is taken alone, as transformers does: the index is left over from
    an earlier save.
    """
    index, single = folder / INDEX, folder / SINGLE
    if single.is_file():
        if index.exists():
            warnings.warn(f"{single} is read, as transformers does; {INDEX} beside it is passed over.")
        return [single], {}
    if index.exists():
        return _indexed(index)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found, {}
    if found:
        raise ValueError(f"{folder} has {len(found)} safetensors files, but no {INDEX} to join them.")
    pickles = sorted(file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}"))
    if pickles:
        raise ValueError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run any code and are never opened; "
            f"convert them to safetensors (transformers' save_pretrained writes it)."
        )
    raise ValueError(f"{folder} has no *.safetensors file.")


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    folder = index.parent
    placed = of_kind(read_json(index, dict, FETCH).get("weight_map"), dict, f"weight_map of {index}")
    first = {
        of_kind(file, str, f"{name} in {index}"): name for name, file in sorted(placed.items(), reverse=True)
    }
    for file, name in first.items():
        # A bare name only: the index must not lead out of the directory.
        if file != Path(file).name or not (folder / file).is_file():
            raise ValueError(f"{index} places tensor {name} in {file!r}, which is not in {folder}.")
    return [folder / file for file in sorted(first)], placed


def _open(file: Path) -> "safetensors.safe_open":
    try:
        opened = safetensors.safe_open(file, framework="np")
    except (safetensors.SafetensorError, OSError):
        found = _cut_off(file) or "its header does not say where each tensor lies"
        raise ValueError(f"{file} is damaged: {found}; {FETCH}.") from None
    parse_json(_header(file), f"the header of {file}")  # which refuses a tensor that is there twice
    return opened


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little"))


def _cut_off(file: Path) -> str | None:
    """Where a truncated file breaks off, in words; None when something else is wrong with it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 + length:
            return "it breaks off inside its header, or is no safetensors file (a Git LFS pointer?)"
        header = stream.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in entries.items()}
        cut = [name for name, end in ends.items() if end > size]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return f"it breaks off before the end of tensor {min(cut, key=lambda name: ends[name])}" if cut else None
