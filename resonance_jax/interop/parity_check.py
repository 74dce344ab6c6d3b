"""Our decoder against PyTorch, tensor by tensor: whether a checkpoint is computed right, and where it is not.

The verdict is taken in float64 with one pair of cos and sin tables on both sides: nothing can hide in
rounding. The tables themselves are compared first, so that a wrong ramp or base is named as what it is.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Integer, Num

from resonance_jax import rope
from resonance_jax.interop import torch_rope
from resonance_jax.interop.hf_config import from_hf_config, read_config
from resonance_jax.interop.hf_weights import load_hf, stored, tensors
from resonance_jax.interop.parity_result import BINS, FLOAT32, FLOAT64, PARTS, Parity, Phases, Tap
from resonance_jax.interop.torch_llama import TorchLlama
from resonance_jax.interop.torch_rope import TorchTable
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import (
    Decoder,
    Params,
    embedded,
    final_norm,
    forward,
    head,
    hidden_states,
)
from resonance_jax.model.decoder_layer import layer
from resonance_jax.model.layer_types import LayerType
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.model.stack import turns

DTYPES = ("float64", "float32", "bfloat16")


def parity(
    path: str | Path,
    spec: rope.Specs | Sequence[rope.Specs] | None = None,
    lengths: Iterable[int] | None = None,
    dtype: str | Sequence[str] = "float64",
    *,
    reference: str | Path | None = None,
    gradients: bool = False,
    tokens: Integer[np.ndarray, "B T"] | None = None,
    seed: int = 0,
) -> Parity:
    """Run our decoder and transformers' on the same tokens and compare every part of them.

    Args:
        path: a Hugging Face directory, which our decoder reads.
        spec: encodings to compare under; None: each side takes what its own config.json states.
        lengths: in positions; by default half, once and eight times the training length.
        dtype: one or more of DTYPES. float64 is decided at FLOAT64, float32 at FLOAT32 under the highest
            precision of matrix products; float32 under the default precision, and bfloat16, are only shown.
        reference: the directory that PyTorch reads; by default the same.
        gradients: compare every parameter's gradient too.
        tokens: at least as many positions as the longest length; by default one random row.
        seed: of that row.

    Raises:
        ValueError: for what load_hf refuses, an unknown dtype, a length under 2, and tokens that are too
            short.
    """
    dtypes = [dtype] if isinstance(dtype, str) else list(dtype)
    if not dtypes or set(dtypes) - set(DTYPES):
        raise ValueError(f"unknown dtype among {dtypes}; expected {', '.join(DTYPES)}.")
    _, stated = from_hf_config(read_config(Path(path)))
    specs = (
        [stated]
        if spec is None
        else [spec]
        if isinstance(spec, rope.RopeSpec | rope.LayerSpecs)
        else list(spec)
    )
    if lengths is None:
        trained = specs[0].train_length or stated.train_length
        if trained is None:
            raise ValueError("the encoding states no training length; give lengths=, in positions.")
        lengths = (trained // 2, trained, 8 * trained)
    lengths = sorted(set(int(n) for n in lengths))
    if not lengths or lengths[0] < 2:
        raise ValueError(f"lengths must be at least 2 positions, got {lengths}.")
    if tokens is not None and tokens.shape[1] < lengths[-1]:
        raise ValueError(f"tokens have {tokens.shape[1]} positions, but {lengths[-1]} are to be compared.")
    taps: list[Tap] = []
    phases: list[Phases] = []
    for one in dtypes:
        with jax.enable_x64(one == "float64"):
            lm, theirs = load_hf(path, dtype=one), TorchLlama(reference or path, one)
            if tokens is None:
                rows = np.random.default_rng(seed).integers(0, lm.config.vocab_size, (1, lengths[-1]))
            else:
                rows = tokens
            for encoding in specs:
                for length in lengths:
                    own = None if spec is None else encoding
                    part = rows[:, :length].astype(np.int32)
                    found = _compare(lm, theirs, encoding, own, part, one, gradients)
                    taps += found[0]
                    phases += found[1]
    return Parity(taps, phases)


def _compare(
    lm: Decoder,
    theirs: TorchLlama,
    spec: rope.Specs,
    given: rope.Specs | None,
    tokens: Int32[np.ndarray, "B T"],
    dtype: str,
    gradients: bool,
) -> tuple[list[Tap], list[Phases]]:
    """The comparison of one encoding at one length. given: None where PyTorch reads its own config."""
    length = tokens.shape[1]
    freqs = rope.frequencies(spec, length)
    tables = _their_tables(theirs, given, list(freqs) if isinstance(freqs, dict) else None, length)
    here = functools.partial(Tap, spec.title, length, dtype)
    taps: list[Tap] = []
    for name, table in tables.items() if dtype != "bfloat16" else ():
        own = freqs[name] if isinstance(freqs, dict) else freqs
        stated = np.asarray(table.inv_freq), np.asarray(table.attention_factor, np.float64)
        ours = own.inv_freq64, np.asarray(own.attention_factor, np.float64)
        names, relative = (f"inv_freq ({table.source})", "attention factor"), (table.rtol, 1e-6)
        for label, a, b, rtol in zip(names, ours, stated, relative, strict=True):
            gap = np.abs(a - b) / np.maximum(np.abs(b), np.finfo(np.float64).tiny)
            taps.append(here("-", label, float(gap.max()), _size(b), rtol, not _close(a, b, rtol=rtol)))
    exact = {
        name: (np.asarray(cos), np.asarray(sin))
        for name, (cos, sin) in turns(lm.config, freqs, np.arange(length), _wide(dtype)).items()
    }
    expected = dict(theirs.run(tokens, exact, gradients))
    for precision in ("highest",) if dtype != "float32" else ("highest", "default"):
        with jax.default_matmul_precision(precision):
            for name, value in our_taps(lm, tokens, freqs, gradients):
                tap = _tap(name, np.asarray(value), expected[name], dtype, precision == "highest")
                taps.append(here(precision, *tap))
    if dtype != "float32":
        return taps, []
    return taps, [_phases(theirs, spec.title, exact, tables, tokens, expected["logits"])]


def _their_tables(
    theirs: TorchLlama, given: rope.Specs | None, types: Sequence[str] | None, length: int
) -> dict[str, TorchTable]:
    """PyTorch's tables: of its own config, or of what is given; by layer type, or one under no name."""
    if given is None:
        read = functools.partial(torch_rope.transformers_table, theirs.config, length)
        return {"": read()} if types is None else {name: read(name) for name in types}
    if isinstance(given, rope.LayerSpecs):
        return {name: torch_rope.table(own, length) for name, own in given.items()}
    return {"": torch_rope.table(given, length)}


def our_taps(
    lm: Decoder, tokens: Int32[np.ndarray, "B T"], freqs: rope.Tables, gradients: bool = False
) -> Iterator[tuple[str, Num[Array | np.ndarray, "..."]]]:
    """(name, value) of every part of our decoder; names and shapes as TorchLlama.run's.

    Layers run one by one; the logits are those of model.forward itself.
    """
    config, params = lm.config, lm.params
    dtype = params["embed"].dtype
    x = embedded(config, params["embed"], tokens, dtype)
    yield "embedding", x
    angles = turns(config, freqs, np.arange(tokens.shape[1]), _wide(dtype))
    for i, kind in enumerate(config.types):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        x, taps = _layer(config, kind, own, x, *angles.get(kind.name, (None, None)))
        yield from ((f"layer {i} {name}", taps[name]) for name in PARTS)
    yield "norm", final_norm(config, params, x)
    yield "logits", _logits(config, params, tokens, freqs)
    loss, grads = _loss(config, params, tokens, freqs, gradients)
    yield "loss", loss
    if grads is not None:
        for name, (where, index, _) in tensors(config).items():
            yield f"gradient of {name}", stored(grads, where, index)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer(
    config: DecoderConfig,
    kind: LayerType,
    p: Mapping[str, Array],
    x: Float[Array, "B T D"],
    cos: Float[Array, "T pairs"] | None,
    sin: Float[Array, "T pairs"] | None,
) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """(what a layer gives to the next one, its tensors by name)."""
    taps: dict[str, Array] = {}

    def tap(name: str, value: Array) -> Array:
        taps[name] = value
        return value

    out = layer(config, p, x, cos, sin, tap=tap, kind=kind)
    return out, {**taps, "residual": out}


_logits = jax.jit(forward, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _loss(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    freqs: rope.Tables,
    gradients: bool,
) -> tuple[Float[Array, ""], Params | None]:
    """(mean NLL in nats, its gradient if that is wanted)."""

    def mean(params: Params) -> Float[Array, ""]:
        x = hidden_states(config, params, tokens, freqs)
        return linear_cross_entropy(x[:, :-1], head(config, params), tokens[:, 1:]).mean()

    return jax.value_and_grad(mean)(params) if gradients else (mean(params), None)


def _wide(dtype: str | np.dtype) -> np.dtype:
    """The dtype of cosines and sines."""
    return jnp.promote_types(jnp.float32, dtype)


def _size(x: Num[np.ndarray, "..."]) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _close(ours: np.ndarray, theirs: np.ndarray, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """Whether chex finds two arrays close; a number that is not finite never agrees."""
    try:
        chex.assert_trees_all_close(ours, theirs, rtol=rtol, atol=atol)
        chex.assert_tree_all_finite(ours)
    except AssertionError:
        return False
    return True


def _tap(
    name: str, ours: np.ndarray, theirs: np.ndarray, dtype: str, decided: bool
) -> tuple[str, float, float, float | None, bool, tuple[float, ...]]:
    """The fields of a Tap from `name` on. decided: whether there is a verdict on it."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    chex.assert_equal_shape([a, b])
    size, gap = _size(b), np.abs(a - b)
    tolerance = _tolerance(name, size, dtype) if decided else None
    along: tuple[float, ...] = ()
    if name.startswith("gradient"):
        # By norms: one number of a gradient says little.
        a, b = np.asarray(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)), np.zeros(())
        gap = np.abs(a)
    elif b.ndim > 1:
        by_position = gap.max(axis=(0, *range(2, gap.ndim)))
        along = tuple(float(part.max()) for part in np.array_split(by_position, min(BINS, len(by_position))))
    wrong = tolerance is not None and not _close(a, b, atol=tolerance)
    return name, float(gap.max()), size, tolerance, wrong, along


def _tolerance(name: str, size: float, dtype: str) -> float | None:
    """By how much a tensor may differ, given its root mean square; None where that is not decided."""
    if dtype == "float64":
        return FLOAT64
    if dtype == "bfloat16":
        return None
    kind = name.split(" ")[0]
    return FLOAT32[kind] if kind in FLOAT32 else FLOAT32["logits"] * max(1.0, size)


def _phases(
    theirs: TorchLlama,
    title: str,
    exact: Mapping[str, tuple[np.ndarray, np.ndarray]],
    tables: Mapping[str, TorchTable],
    tokens: Int32[np.ndarray, "B T"],
    logits: Float[np.ndarray, "B T V"],
) -> Phases:
    """How far PyTorch's own float32 phases are from exact ones, and what that does to the logits."""
    length = tokens.shape[1]
    made = {name: torch_rope.cos_sin(table, length) for name, table in tables.items()}
    own = {name: made[name if name in made else ""] for name in exact}
    gaps = [
        float(np.abs(a - np.asarray(b)).max())
        for name, both in exact.items()
        for a, b in zip(own[name], both, strict=True)
    ]
    moved = dict(theirs.run(tokens, own))["logits"]
    source = next(iter(tables.values())).source
    return Phases(title, length, source, max(gaps, default=0.0), float(np.abs(moved - logits).max()))
