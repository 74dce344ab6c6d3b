"""A GGUF file (llama.cpp's format), opened but not read: its metadata, and its tensors a few rows at a time.

The `gguf` package maps the file into memory; a row is dequantised when it is asked for, so the whole model
never lies in memory in float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

Value = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]
"""A value of a GGUF file's metadata."""

Kind = TypeVar("Kind", str, int, float, bool)

SUFFIX = ".gguf"


class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        shape: as NumPy has it, rows first.
        type: its quantisation, such as "Q4_1" or "F32".
    """

    def __init__(self, data: np.ndarray, shape: tuple[int, ...], type: str) -> None:
        self._data, self.shape, self.type = data, shape, type

    def rows(self, index: slice | Int[np.ndarray, "n"]) -> Float[np.ndarray, "n ..."]:
        """Some rows in float32, exactly as `gguf` dequantises them; with one axis a row is a number."""
        import gguf

        return gguf.dequantize(np.ascontiguousarray(self._data[index]), gguf.GGMLQuantizationType[self.type])


class GgufFile:
    """The metadata and the tensors of a GGUF file, both by llama.cpp's names.

    Raises ValueError in one sentence when the `gguf` package is not installed, and when the file is missing,
    damaged, or holds a tensor of a type that `gguf` cannot dequantise.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            import gguf
        except ImportError:
            raise ValueError(f"Reading {self.path} needs the gguf package: pip install gguf.") from None
        if not self.path.is_file():
            raise ValueError(f"There is no file {self.path}; expected a GGUF file.")
        try:
            reader = gguf.GGUFReader(self.path)
            self.metadata: Mapping[str, Value] = {name: f.contents() for name, f in reader.fields.items()}
            known = {
                tensor.name: GgufTensor(
                    tensor.data,
                    tuple(int(size) for size in reversed(tensor.shape.tolist())),
                    gguf.GGMLQuantizationType(tensor.tensor_type).name,
                )
                for tensor in reader.tensors
            }
        # The reader trusts the file's own counts and offsets: a damaged one ends in any of these.
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
            raise ValueError(
                f"{self.path} is no whole GGUF file ({_first_line(error)}): fetch it again."
            ) from None
        readable = {"F32", "F16"} | {kind.name for kind in gguf.quants._type_traits}
        for name, tensor in known.items():
            if tensor.type not in readable:
                raise ValueError(
                    f"{self.path}: tensor {name} is stored as {tensor.type}, which gguf cannot dequantise; "
                    f"it can {', '.join(sorted(readable))}."
                )
        self.tensors: Mapping[str, GgufTensor] = known

    def get(self, key: str, kind: type[Kind]) -> Kind | None:
        """A value of the metadata, None where the file is silent; ValueError for one of another kind."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{self.path}: {key} is {value!r:.60}, expected {kind.__name__}.")
        return value

    def array(self, key: str, kind: type[str] | type[int] | type[float]) -> list | None:
        """An array of the metadata, None where the file is silent. Raises ValueError for other contents."""
        value = self.metadata.get(key)
        if value is None:
            return None
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, list) or not all(isinstance(each, kinds) for each in value):
            raise ValueError(f"{self.path}: {key} is no list of {kind.__name__}.")
        return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find(path: str | Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only one of a folder without safetensors; else None.

    Raises ValueError when such a folder holds several.
    """
    path = Path(path)
    if path.is_file() and path.suffix == SUFFIX:
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path} holds several GGUF files ({names}); name one of them.")
    return found[0] if found else None
