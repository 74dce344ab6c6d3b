"""The one room that opens a checkpoint: what it states, where its weights are, and what goes with them.

A checkpoint is a Hugging Face directory (config.json and *.safetensors), a GGUF file or a folder with one, or
the name of a packaged one. Opening it reads no weight.
"""

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resonance_jax import data, digest, rope
from resonance_jax.data import gguf_file
from resonance_jax.data.gguf_tokenizer import tokenizer_files
from resonance_jax.interop import gguf_model
from resonance_jax.interop.hf_config import from_hf_config, read_config, stated_context
from resonance_jax.interop.hf_files import TensorSlice, open_tensors, weight_files
from resonance_jax.interop.named_checkpoints import NAMED, located
from resonance_jax.model import DecoderConfig

NOT_KEPT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".lock")
"""Suffixes of files that hold weights, in whatever format, or that only a download needs."""
TEMPLATES = "additional_chat_templates"
"""The folder of a Hugging Face directory's further chat templates."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been opened.

    Attributes:
        path: the directory or the GGUF file.
        stated: its config.json, or what the GGUF file's metadata says in the same words.
        gguf: the GGUF file; None for a directory.
    """

    path: Path
    stated: Mapping[str, Any]
    gguf: gguf_file.GgufFile | None = None

    @functools.cached_property
    def _read(self) -> tuple[DecoderConfig, rope.Specs]:
        try:
            return from_hf_config(dict(self.stated))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shape. Raises ValueError for what the decoder does not compute."""
        return self._read[0]

    @property
    def rope(self) -> rope.Specs:
        """The encoding that the weights were trained under."""
        return self._read[1]

    @property
    def context_length(self) -> int | None:
        """Positions that the checkpoint says it serves, None where it does not say."""
        return stated_context(dict(self.stated))

    def tensors(self) -> dict[str, TensorSlice]:
        """Every tensor by Hugging Face's name, as a slice that is read on demand."""
        return open_tensors(self.path) if self.gguf is None else dict(gguf_model.hf_tensors(self.gguf))

    def weights_digest(self) -> str:
        """SHA-256 (hex) over the bytes of the files that hold the weights."""
        return digest.of_files([self.path] if self.gguf is not None else weight_files(self.path))

    def tokenizer(self, bos: str | int = "auto", eos: str | int = "auto") -> data.Tokenizer:
        """The checkpoint's own tokenizer; bos and eos as data.tokenizer takes them."""
        if self.gguf is None:
            return data.tokenizer(self.path, bos=bos, eos=eos)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in tokenizer_files(self.gguf).items():
                (Path(folder) / name).write_bytes(content)
            (Path(folder) / "config.json").write_text(json.dumps(dict(self.stated)), encoding="utf-8")
            return data.tokenizer(Path(folder), bos=bos, eos=eos)

    def write_companions(self, folder: Path) -> None:
        """Copy into a folder what goes with the weights: the tokenizer's files, the chat template,
        generation_config.json, a licence. Not config.json, and not a README, which is about other weights.
        """
        if self.gguf is not None:
            for name, content in tokenizer_files(self.gguf).items():
                (folder / name).write_bytes(content)
            return
        for source in sorted(self.path.iterdir()):
            if source.is_file() and _goes_with_weights(source):
                shutil.copyfile(source, folder / source.name)
        if (self.path / TEMPLATES).is_dir():
            shutil.copytree(self.path / TEMPLATES, folder / TEMPLATES)


def _goes_with_weights(file: Path) -> bool:
    name = file.name
    weights = name.endswith(NOT_KEPT) or name.endswith(".index.json")
    return not (weights or name.startswith(".") or name == "config.json" or name.lower().startswith("readme"))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint by its path or by its name (interop.named_checkpoints).

    Raises ValueError in one sentence when there is none, or when what it states cannot be read.
    """
    given = Path(path)
    if not given.exists() and (packaged := located(str(path))) is not None:
        given = packaged
    file = gguf_file.find(given)
    if file is not None:
        opened = gguf_file.GgufFile(file)
        return Checkpoint(file, gguf_model.hf_config(opened), opened)
    if given.is_dir():
        return Checkpoint(given, read_config(given))
    raise ValueError(
        f"{path} is not a directory or a GGUF file, and no checkpoint has that name (there is "
        f"{', '.join(NAMED)}); expected a directory with config.json and *.safetensors, or a .gguf file."
    )
