"""Weights under Hugging Face's names for its families: one table of names, read in both directions.

Reading is streamed: each parameter is filled a few megabytes at a time from the memory-mapped files,
straight into the part of it that a device holds. Nothing is ever unpickled.
"""

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from resonance_jax.interop.checkpoint import Checkpoint, open_checkpoint
from resonance_jax.interop.hf_files import TensorSlice
from resonance_jax.model import Decoder, DecoderConfig
from resonance_jax.model.lora import flatten
from resonance_jax.model.parameters import Parameter, Params, map_declared, real_dtype
from resonance_jax.parallel.gather import gathered
from resonance_jax.parallel.mesh import sharding

NAMES: dict[str, tuple[str, bool]] = {
    "embed": ("model.embed_tokens.weight", False),
    "layers/attn_norm": ("model.layers.{layer}.input_layernorm.weight", False),
    "layers/attn_post_norm": ("model.layers.{layer}.post_attention_layernorm.weight", False),
    "layers/q": ("model.layers.{layer}.self_attn.q_proj.weight", True),
    "layers/k": ("model.layers.{layer}.self_attn.k_proj.weight", True),
    "layers/v": ("model.layers.{layer}.self_attn.v_proj.weight", True),
    "layers/o": ("model.layers.{layer}.self_attn.o_proj.weight", True),
    "layers/q_bias": ("model.layers.{layer}.self_attn.q_proj.bias", False),
    "layers/k_bias": ("model.layers.{layer}.self_attn.k_proj.bias", False),
    "layers/v_bias": ("model.layers.{layer}.self_attn.v_proj.bias", False),
    "layers/q_norm": ("model.layers.{layer}.self_attn.q_norm.weight", False),
    "layers/k_norm": ("model.layers.{layer}.self_attn.k_norm.weight", False),
    "layers/mlp_norm": ("model.layers.{layer}.post_attention_layernorm.weight", False),
    "layers/mlp_post_norm": ("model.layers.{layer}.post_feedforward_layernorm.weight", False),
    "layers/gate": ("model.layers.{layer}.mlp.gate_proj.weight", True),
    "layers/up": ("model.layers.{layer}.mlp.up_proj.weight", True),
    "layers/down": ("model.layers.{layer}.mlp.down_proj.weight", True),
    "final_norm": ("model.norm.weight", False),
    "head": ("lm_head.weight", True),
}
"""Parameter path -> (Hugging Face's name, whether it is stored [out, in] there, where ours is [in, out]).

A name with {layer} is one tensor per layer; ours are stacked on axis 0."""

_BETWEEN_FOUR = "model.layers.{layer}.pre_feedforward_layernorm.weight"
"""The MLP's own norm where what attention adds is normed too, which has its name otherwise."""

_DERIVED = (
    ".rotary_emb."  # tables that some checkpoints hold too (inv_freq, cos_cached, …): the config states them
)
_OF_LAYER = re.compile(r"model\.layers\.[0-9]{1,9}\.")
_DTYPES = ("F32", "BF16", "F16", "F64")
_BLOCK_BYTES = 1 << 24


def name_of(path: str, post_norms: bool) -> tuple[str, bool]:
    """The entry of NAMES for a decoder with or without post_norms."""
    return (_BETWEEN_FOUR, False) if post_norms and path == "layers/mlp_norm" else NAMES[path]


def tensors(config: DecoderConfig) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Every tensor that Hugging Face stores for a decoder: name -> (our path, layer, shape there)."""
    found: dict[str, tuple[str, int | None, tuple[int, ...]]] = {}

    def visit(path: str, parameter: Parameter) -> None:
        template, transposed = name_of(path, config.post_norms)
        stacked = "{layer}" in template
        shape = parameter.shape[1:] if stacked else parameter.shape
        for layer in range(config.n_layers) if stacked else (None,):
            found[template.format(layer=layer)] = (path, layer, shape[::-1] if transposed else shape)

    map_declared(visit, config)
    return found


def load_hf(
    path: str | Path, dtype: str = "float32", mesh: Mesh | None = None, finite: bool = True
) -> Decoder:
    """A decoder from a checkpoint: a Hugging Face directory, a GGUF file, or the name of a packaged one.

    The families of interop.families; safetensors in float32, bfloat16 or float16, one file or an indexed
    set, or any quantised type that `gguf` dequantises. `lm.rope` is what the checkpoint states, a RopeSpec
    or LayerSpecs, `lm.context_length` its max_position_embeddings, `lm.source` the path.

    Args:
        path: the checkpoint (interop.open_checkpoint).
        dtype: of the parameters and of the activations.
        mesh: cuts the parameters; each process reads only the slices that its own devices hold.
        finite: refuse a weight that is not a number, or infinite in this dtype.

    Raises:
        ValueError: an unsupported architecture or option, pickled weights, a damaged file, a tensor that is
            missing, unknown, of another shape or not finite; the sentence names the key or the tensor.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config.replace(dtype=dtype)
    return Decoder(
        config,
        mesh=mesh,
        rope=checkpoint.rope,
        params=load_params(checkpoint, config, mesh, finite),
        context_length=checkpoint.context_length,
        source=checkpoint.path,
    )


def load_params(
    checkpoint: Checkpoint, config: DecoderConfig, mesh: Mesh | None = None, finite: bool = True
) -> Params:
    """The params pytree of load_hf, in config.dtype, for a config that is already known."""
    dtype, held = real_dtype(config.dtype), checkpoint.tensors()
    _check(checkpoint.path, held, config)
    names = {path: name_of(path, config.post_norms) for path in NAMES}

    def leaf(path: str, parameter: Parameter) -> jax.Array:
        parts = {}

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # the index of an array's part never is
            ranges = tuple(s.indices(n)[:2] for s, n in zip(index, parameter.shape, strict=True))
            if ranges not in parts:  # replicas share one reading
                parts[ranges] = _read(held, names[path], ranges, dtype, checkpoint.path if finite else None)
            return parts[ranges]

        if mesh is None:
            array = jax.device_put(part((slice(None),) * len(parameter.shape)))
        else:
            where = sharding(mesh, parameter.axes, parameter.shape)
            array = jax.make_array_from_callback(parameter.shape, where, part)
        return array.block_until_ready()  # one parameter in flight at a time

    return map_declared(leaf, config)


def _check(path: Path, held: Mapping[str, TensorSlice], config: DecoderConfig) -> None:
    """Raise ValueError unless the tensors are exactly the config's."""
    found = {int(name.split(".")[2]) for name in held if _OF_LAYER.match(name)}
    if config.n_layers > len(found):  # before as many names as it states are made
        missing = next(layer for layer in range(config.n_layers) if layer not in found)
        raise ValueError(
            f"{path} lacks tensor {NAMES['layers/q'][0].format(layer=missing)}; its config.json states "
            f"{config.n_layers} layers."
        )
    wanted = tensors(config)
    copied_head = {NAMES["head"][0]} & held.keys() if config.tie_embeddings else set()
    names = {name for name in held if _DERIVED not in name} - copied_head
    for verb, odd in (("lacks", wanted.keys() - names), ("has the unknown", names - wanted.keys())):
        if odd:
            more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            raise ValueError(
                f"{path} {verb} tensor {min(odd)}{more}; its config.json states {config.n_layers} layers"
                f" and {'tied' if config.tie_embeddings else 'untied'} embeddings."
            )
    for name, (_, _, shape) in wanted.items():
        found, dtype = tuple(held[name].get_shape()), held[name].get_dtype()
        if found != shape:
            raise ValueError(f"{path}: tensor {name} has shape {found}, but config.json asks for {shape}.")
        if dtype not in _DTYPES:
            raise ValueError(
                f"{path}: tensor {name} is stored as {dtype}; supported are {', '.join(_DTYPES)}."
            )
    if copied_head:
        _check_tied(path, held)


def _check_tied(path: Path, held: Mapping[str, TensorSlice]) -> None:
    embed, head = held[NAMES["embed"][0]], held[NAMES["head"][0]]
    V, D = embed.get_shape()
    if head.get_shape() != [V, D] or not all(
        np.array_equal(embed[start:stop], head[start:stop]) for start, stop in _blocks(0, V, D)
    ):
        raise ValueError(
            f"{path}: config.json ties the embeddings, but tensor {NAMES['head'][0]} is not "
            f"{NAMES['embed'][0]}; set tie_word_embeddings to false."
        )


def _read(
    held: Mapping[str, TensorSlice],
    named: tuple[str, bool],
    ranges: tuple[tuple[int, int], ...],
    dtype: np.dtype,
    finite: Path | None,
) -> np.ndarray:
    """The part `ranges`, (start, stop) per axis, of the parameter that `named`, an entry of NAMES, is for.

    finite: the checkpoint to name where a number is not finite; None: do not look.
    """
    template, transposed = named
    out = _pages([stop - start for start, stop in ranges], dtype)
    stacked = "{layer}" in template
    for layer in range(*ranges[0]) if stacked else (None,):
        into, wanted = (out[layer - ranges[0][0]], ranges[1:]) if layer is not None else (out, ranges)
        if transposed:
            into, wanted = into.T, wanted[::-1]
        (first, last), *rest = wanted
        columns = [slice(*c) for c in rest]
        name = template.format(layer=layer)
        for start, stop in _blocks(first, last, into[0].size):
            block = into[start - first : stop - first]
            block[...] = held[name][(slice(start, stop), *columns)]
            if finite is not None and not np.isfinite(block).all():
                raise ValueError(
                    f"{finite}: tensor {name} holds a number that is not finite in {dtype.name}; fetch it "
                    "again, load it in another dtype, or pass finite=False to go on."
                )
    return out


def _pages(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An empty array on memory pages of its own. Aligned, so that JAX on CPU takes it over without a copy;
    elsewhere it goes back to the system as soon as the device has it."""
    count = math.prod(shape)
    pages = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype, count).reshape(shape)


def _blocks(first: int, last: int, row: int) -> Iterator[tuple[int, int]]:
    """(start, stop) over rows of `row` numbers, _BLOCK_BYTES at a time."""
    step = max(1, _BLOCK_BYTES // (4 * row))
    return ((start, min(start + step, last)) for start in range(first, last, step))


def stored(params: Params, path: str, layer: int | None) -> np.ndarray:
    """One tensor as Hugging Face stores it, on the host."""
    leaf = flatten(params)[path]
    array = gathered(leaf if layer is None else leaf[layer])
    # safetensors writes memory order, so a transposed view would come out scrambled.
    return np.ascontiguousarray(array.T if NAMES[path][1] else array)
