"""Weights of Hugging Face's LLaMA and Mistral: one table of names, read in both directions.

Reading is streamed: each parameter is filled a few megabytes at a time from the memory-mapped files,
straight into the part of it that a device holds. Nothing is ever unpickled.
"""

import json
import math
import mmap
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import save_file

from resonance_jax import rope as encodings
from resonance_jax.interop.hf_config import from_hf_config, read_config, stated_context, to_hf_config
from resonance_jax.interop.hf_encoding import encoding_keys
from resonance_jax.interop.hf_files import INDEX, open_tensors
from resonance_jax.model import Decoder, DecoderConfig
from resonance_jax.model.decoder import Params
from resonance_jax.model.lora import flatten
from resonance_jax.model.parameters import Parameter, map_declared, real_dtype
from resonance_jax.parallel.mesh import sharding

NAMES: dict[str, tuple[str, bool]] = {
    "embed": ("model.embed_tokens.weight", False),
    "layers/attn_norm": ("model.layers.{layer}.input_layernorm.weight", False),
    "layers/q": ("model.layers.{layer}.self_attn.q_proj.weight", True),
    "layers/k": ("model.layers.{layer}.self_attn.k_proj.weight", True),
    "layers/v": ("model.layers.{layer}.self_attn.v_proj.weight", True),
    "layers/o": ("model.layers.{layer}.self_attn.o_proj.weight", True),
    "layers/mlp_norm": ("model.layers.{layer}.post_attention_layernorm.weight", False),
    "layers/gate": ("model.layers.{layer}.mlp.gate_proj.weight", True),
    "layers/up": ("model.layers.{layer}.mlp.up_proj.weight", True),
    "layers/down": ("model.layers.{layer}.mlp.down_proj.weight", True),
    "final_norm": ("model.norm.weight", False),
    "head": ("lm_head.weight", True),
}
"""Parameter path -> (Hugging Face's name, whether it is stored [out, in] there, where ours is [in, out]).

A name with {layer} is one tensor a layer; ours are stacked on axis 0."""

_DERIVED = ".rotary_emb.inv_freq"  # old checkpoints hold the table too; the config states it
_DTYPES = ("F32", "BF16", "F16", "F64")
_BLOCK_BYTES = 1 << 24


def tensors(config: DecoderConfig) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Every tensor that Hugging Face stores for a decoder: name -> (our path, layer, shape there)."""
    found: dict[str, tuple[str, int | None, tuple[int, ...]]] = {}

    def visit(path: str, parameter: Parameter) -> None:
        template, transposed = NAMES[path]
        stacked = "{layer}" in template
        shape = parameter.shape[1:] if stacked else parameter.shape
        for layer in range(config.n_layers) if stacked else (None,):
            found[template.format(layer=layer)] = (path, layer, shape[::-1] if transposed else shape)

    map_declared(visit, config)
    return found


def load_hf(path: str | Path, dtype: str = "float32", mesh=None) -> Decoder:
    """A decoder from a Hugging Face directory: config.json and *.safetensors, one file or an indexed set.

    LLaMA 1 to 3 and Mistral, stored in float32, bfloat16 or float16, embeddings tied or not. `dtype` is
    that of the parameters and of the activations; `lm.rope` is the RopeSpec that the config states and
    `lm.context_length` its max_position_embeddings. With a mesh each process reads only the slices that its
    own devices hold. Raises ValueError naming the key or the tensor: an unsupported architecture or option,
    pickled weights, a damaged file, a tensor that is missing, unknown or of another shape.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a directory; expected one with config.json and *.safetensors.")
    stated = read_config(folder)
    config, spec = from_hf_config(stated)
    config = config.replace(dtype=dtype)
    return Decoder(
        config,
        mesh=mesh,
        rope=spec,
        params=load_params(folder, config, mesh),
        context_length=stated_context(stated),
    )


def load_params(folder: Path, config: DecoderConfig, mesh=None) -> dict[str, Any]:
    """The params pytree of load_hf, in config.dtype, for a config that is already known."""
    dtype = real_dtype(config.dtype)
    held = open_tensors(folder)
    _check(folder, held, config)

    def leaf(path: str, parameter: Parameter) -> jax.Array:
        parts = {}

        def part(index: tuple[slice, ...]) -> np.ndarray:
            ranges = tuple(s.indices(n)[:2] for s, n in zip(index, parameter.shape, strict=True))
            if ranges not in parts:  # replicas share one reading
                parts[ranges] = _read(held, path, ranges, dtype)
            return parts[ranges]

        if mesh is None:
            array = jax.device_put(part((slice(None),) * len(parameter.shape)))
        else:
            where = sharding(mesh, parameter.axes, parameter.shape)
            array = jax.make_array_from_callback(parameter.shape, where, part)
        return array.block_until_ready()  # one parameter in flight at a time

    return map_declared(leaf, config)


def _check(folder: Path, held: dict[str, Any], config: DecoderConfig) -> None:
    """Raise ValueError unless the tensors are exactly the config's."""
    wanted = tensors(config)
    copied_head = {NAMES["head"][0]} & held.keys() if config.tie_embeddings else set()
    names = {name for name in held if not name.endswith(_DERIVED)} - copied_head
    for verb, odd in (("lacks", wanted.keys() - names), ("has the unknown", names - wanted.keys())):
        if odd:
            more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            raise ValueError(
                f"{folder} {verb} tensor {min(odd)}{more}; its config.json states {config.n_layers} layers"
                f" and {'tied' if config.tie_embeddings else 'untied'} embeddings."
            )
    for name, (_, _, shape) in wanted.items():
        found, dtype = tuple(held[name].get_shape()), held[name].get_dtype()
        if found != shape:
            raise ValueError(f"{folder}: tensor {name} has shape {found}, but config.json asks for {shape}.")
        if dtype not in _DTYPES:
            raise ValueError(
                f"{folder}: tensor {name} is stored as {dtype}; supported are {', '.join(_DTYPES)}."
            )
    if copied_head:
        _check_tied(folder, held)


def _check_tied(folder: Path, held: dict[str, Any]) -> None:
    embed, head = held[NAMES["embed"][0]], held[NAMES["head"][0]]
    V, D = embed.get_shape()
    if head.get_shape() != [V, D] or not all(
        np.array_equal(embed[start:stop], head[start:stop]) for start, stop in _blocks(0, V, D)
    ):
        raise ValueError(
            f"{folder}: config.json ties the embeddings, but tensor {NAMES['head'][0]} is not "
            f"{NAMES['embed'][0]}; set tie_word_embeddings to false."
        )


def _read(held: dict[str, Any], path: str, ranges: tuple[tuple[int, int], ...], dtype) -> np.ndarray:
    """The part `ranges`, (start, stop) an axis, of the parameter `path`."""
    template, transposed = NAMES[path]
    out = _pages([stop - start for start, stop in ranges], dtype)
    stacked = "{layer}" in template
    for layer in range(*ranges[0]) if stacked else (None,):
        into, wanted = (out[layer - ranges[0][0]], ranges[1:]) if stacked else (out, ranges)
        if transposed:
            into, wanted = into.T, wanted[::-1]
        (first, last), *rest = wanted
        columns = [slice(*c) for c in rest]
        for start, stop in _blocks(first, last, into[0].size):
            stored = held[template.format(layer=layer)][(slice(start, stop), *columns)]
            into[start - first : stop - first] = stored
    return out


def _pages(shape: list[int], dtype) -> np.ndarray:
    """An empty array on memory pages of its own. Aligned, so that JAX on CPU takes it over without a copy;
    elsewhere it goes back to the system as soon as the device has it."""
    count = math.prod(shape)
    pages = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype, count).reshape(shape)


def _blocks(first: int, last: int, row: int) -> Iterator[tuple[int, int]]:
    """(start, stop) over rows of `row` numbers, _BLOCK_BYTES at a time."""
    step = max(1, _BLOCK_BYTES // (4 * row))
    return ((start, min(start + step, last)) for start in range(first, last, step))


def save_hf(
    lm: Decoder,
    path: str | Path,
    rope: encodings.RopeSpec | None = None,
    freqs: encodings.Frequencies | None = None,
    length: int | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra: dict[str, Any] | None = None,
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

    What Hugging Face has no name for (Resonance, static NTK, a bare table) is written as `longrope` factors
    for `length` positions. max_position_embeddings is lm.context_length, more where another encoding or
    `length` asks for more. Dynamic NTK is the exception: transformers takes that key for its L, so it is the
    spec's train_length, and the context length beyond it cannot be stated.

    Raises:
        ValueError: the directory is not empty; no encoding is stated or given; something that Hugging
            Face's LLaMA and Mistral cannot express.
        OSError: the disk is full.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; name a new or an empty directory.")
    params = lm.params
    dtype = params["embed"].dtype
    encoding = encoding_keys(lm, rope, freqs, length)
    stated = to_hf_config(lm.config, encoding, dtype.name) | (extra or {})
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
            file = file if len(shards) > 1 else "model.safetensors"
            placed |= dict.fromkeys(names, file)
            size += sum(array.nbytes for array in arrays.values())
            if writes:
                _write_tensors(partial / file, arrays)
        if writes:
            if len(shards) > 1:
                _write_json(partial / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})
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


def stored(params: Params, path: str, layer: int | None) -> Shaped[np.ndarray, "..."]:
    """One tensor as Hugging Face stores it, on the host: of one layer, where the parameter is stacked."""
    leaf = flatten(params)[path]
    leaf = leaf if layer is None else leaf[layer]
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    # safetensors writes memory order, so a transposed view would come out scrambled.
    return np.ascontiguousarray(array.T if NAMES[path][1] else array)


def _write_tensors(file: Path, arrays: dict[str, Shaped[np.ndarray, "..."]]) -> None:
    try:
        save_file(arrays, file, metadata={"format": "pt"})  # transformers looks for this mark
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {error}") from None


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
