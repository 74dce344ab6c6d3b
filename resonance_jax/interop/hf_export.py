"""A decoder as a Hugging Face directory: config.json, safetensors, and what belongs beside them."""

import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

from resonance_jax import rope as encodings
from resonance_jax.interop.checkpoint import Checkpoint, open_checkpoint
from resonance_jax.interop.hf_config import kept_keys, to_hf_config
from resonance_jax.interop.hf_encoding import encoding_keys
from resonance_jax.interop.hf_files import INDEX, SINGLE
from resonance_jax.interop.hf_weights import stored, tensors
from resonance_jax.model import Decoder


def save_hf(
    lm: Decoder,
    path: str | Path,
    rope: encodings.Specs | None = None,
    freqs: encodings.Tables | None = None,
    length: int | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra: Mapping[str, Any] | None = None,
    like: str | Path | None = None,
) -> None:
    """Write config.json and safetensors that unmodified transformers loads, in the parameters' own dtype.

    The directory appears complete or not at all.

    Args:
        lm: the decoder. What it states, its encoding and its context length, is what config.json says
            unless something else is asked for here.
        path: the directory, which must be new or empty.
        rope: another encoding than lm.rope.
        freqs: a table to write in place of rope's own; base and train_length are still rope's.
        length: the longest sequence, in positions. It is needed only for a dynamic encoding that is given
            here by name; by default it is lm.context_length, or what the encoding states (scale *
            train_length).
        max_shard_bytes: of one file; a larger tensor has a file of its own.
        extra: more keys of config.json, for example bos_token_id.
        like: the checkpoint whose tokenizer, chat template, token ids and other keys of config.json are
            kept; default lm.source, what the weights were loaded from.

    What Hugging Face has no name for (Resonance, static NTK, a bare table) is written as `longrope` factors
    for `length` positions. max_position_embeddings is lm.context_length, more where another encoding or
    `length` asks for more. Dynamic NTK is the exception: transformers takes that key for its L, so it is the
    spec's train_length, and the context length beyond it cannot be stated.

    Raises:
        ValueError: the directory is not empty; no encoding is stated or given; something that Hugging
            Face's families cannot express.
        OSError: the disk is full.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; name a new or an empty directory.")
    params = lm.params
    dtype = params["embed"].dtype
    encoding = encoding_keys(lm, rope, freqs, length)
    source = _source(lm, like)
    kept = {} if source is None else kept_keys(source.stated)
    stated = kept | to_hf_config(lm.config, encoding, dtype.name) | dict(extra or {})
    wanted = tensors(lm.config)
    shards = _shards(wanted, dtype.itemsize, max_shard_bytes)
    writes = jax.process_index() == 0
    partial = folder.with_name(folder.name + ".partial")
    if writes:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
        partial.mkdir(parents=True)
    try:
        placed, size = {}, 0
        for number, names in enumerate(shards, start=1):
            arrays = {name: stored(params, *wanted[name][:2]) for name in names}
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            file = file if len(shards) > 1 else SINGLE
            placed |= dict.fromkeys(names, file)
            size += sum(array.nbytes for array in arrays.values())
            if writes:
                _write_tensors(partial / file, arrays)
        if writes:
            if len(shards) > 1:
                _write_json(partial / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})
            if source is not None:
                source.write_companions(partial)
            _write_json(partial / "config.json", stated)
            partial.rename(folder)
    except BaseException:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    multihost_utils.sync_global_devices("save_hf")  # no process goes on before the directory is there


def _shards(
    wanted: dict[str, tuple[str, int | None, tuple[int, ...]]], itemsize: int, max_bytes: int
) -> list[list[str]]:
    """Names of tensors, file by file."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, (_, _, shape) in wanted.items():
        size = itemsize * math.prod(shape)
        if shards[-1] and size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _source(lm: Decoder, like: str | Path | None) -> Checkpoint | None:
    """The checkpoint whose companions are kept. One that was asked for has to be there."""
    if like is not None:
        return open_checkpoint(like)
    if lm.source is None:
        return None
    if not lm.source.exists():
        warnings.warn(
            f"{lm.source}, which the weights came from, is gone: its tokenizer and token ids are not written "
            "beside them; name another checkpoint with like=."
        )
        return None
    return open_checkpoint(lm.source)


def _write_tensors(file: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        save_file(arrays, file, metadata={"format": "pt"})  # transformers looks for this mark
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {error}") from None


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
