"""Hugging Face configs <-> RopeSpec, and any table at all as a config that transformers loads.

Both layouts are read and written: version 4 (`rope_scaling` beside a top-level `rope_theta`) and version 5
(`rope_parameters` with `rope_theta` inside). Numbers mean what transformers 5 makes of them; the types and
the flag of the Resonance release (`ntk`, `dynamic-yarn`, `resonance_yarn`, `resonance_rope`) mean what they
say, though the release does not always do it (explain() tells).
"""

import json
import math
import numbers
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from resonance_jax.rope import release
from resonance_jax.rope.integer_wavelengths import resonance
from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.phases import Frequencies, host
from resonance_jax.rope.schema import Given, Method, RopeType
from resonance_jax.rope.spec import RopeSpec
from resonance_jax.rope.tables import frequencies, same

Config = Mapping[str, object]
"""A parsed config.json, or one dictionary of it."""

_OF_EVERY_TYPE = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
_TOP_LEVEL = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "resonance_rope",
    "no_rope_layers",
    "no_rope_layer_interval",
)


def from_hf(config: Given[Config], layer_type: str | None = None) -> RopeSpec:
    """The encoding that a model's config.json states, with the meaning that transformers 5 gives it.

    `dynamic` takes max_position_embeddings for L, as transformers does; a type that has no length of its own
    gets a train_length only where the config states one.

    Args:
        config: the parsed config.json, in the version 4 or 5 layout.
        layer_type: which layers' encoding, where they differ ("full_attention", …).

    Raises:
        ValueError: for unknown types and keys, for what is missing, and for two layouts that contradict each
            other.
    """
    layers = layer_dicts(config)
    if layer_type not in layers:
        names = ", ".join(map(str, layers))
        if layer_type is None:
            raise ValueError(f"this config has one RoPE per layer type: pass layer_type=, one of {names}.")
        if None in layers:
            raise ValueError(f"this config has one RoPE for all layers: drop layer_type={layer_type!r}.")
        raise ValueError(f"unknown layer_type {layer_type!r}; this config has {names}.")
    first, *others = [_spec(config, stated, layer_type) for stated in layers[layer_type]]
    for other in others:
        if other != first:
            raise ValueError(
                f"rope_scaling and rope_parameters contradict each other ({first.stated()} against "
                f"{other.stated()}); keep one of them."
            )
    return first


def layer_dicts(config: Given[Config]) -> dict[str | None, list[Config]]:
    """The RoPE dictionaries of a config by layer type (None: all layers alike), one for each layout used."""
    if not isinstance(config, Mapping):
        raise ValueError(f"expected a config as a dictionary, got {type(config).__name__}; try .to_dict().")
    for key, value in config.items():
        if value and key not in _TOP_LEVEL and re.search(r"(^|_)m?(rope|rotary)(_|$)", key):
            raise ValueError(f"unknown RoPE key {key!r} in the config; known are {', '.join(_TOP_LEVEL)}.")
    given = [config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)]
    stated: list[Config] = [parameters for parameters in given if isinstance(parameters, Mapping)]
    if len(stated) < len(given):
        raise ValueError(f"rope_scaling and rope_parameters must be dictionaries, got {given}.")
    nested = [p for p in stated if any(isinstance(value, Mapping) for value in p.values())]
    if nested and len(stated) > 1:
        raise ValueError("rope_scaling beside rope_parameters per layer type: keep rope_parameters alone.")
    if nested:
        with_rope = [name for name, own in nested[0].items() if name != "truncate" and own is not None]
        return {name: [_of_layer(nested[0], name)] for name in with_rope}
    if config.get("rope_local_base_freq"):  # how Gemma 3 says it in version 4
        local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
        return {"full_attention": stated or [{}], "sliding_attention": [local]}
    return {None: stated or [{}]}


def _of_layer(nested: Config, name: str) -> Config:
    """One layer type's dictionary, with the `truncate` that transformers reads: that of the level above."""
    own, truncate = nested[name], nested.get("truncate", True)
    if not isinstance(own, Mapping):
        raise ValueError(f"expected a dictionary for layer type {name!r} of rope_parameters, got {own!r}.")
    if own.get("truncate", truncate) != truncate:
        raise ValueError(
            f"transformers ignores truncate inside {name!r} and reads it from rope_parameters itself: "
            "move it up, or drop it."
        )
    known = rope_types().get(rope_type_of(own))
    return {**own, "truncate": truncate} if known and "truncate" in known[1].keys else own


def rope_type_of(parameters: Config) -> str:
    """The type that a RoPE dictionary names, under its new key or its old one."""
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    return rope_type if isinstance(rope_type, str) else repr(rope_type)


def rope_types() -> dict[str, tuple[str, RopeType, bool]]:
    """Every rope type that is read: our method, how it states it, and whether it means Resonance.

    transformers' types first, then the release's.
    """
    own = {
        name: (method, stated_by, False)
        for method, record in METHODS.items()
        for name, stated_by in record.read_from.items()
    }
    return own | {name: entry for name, entry in release.ROPE_TYPES.items() if name not in own}


def _spec(config: Config, parameters: Config, layer_type: str | None) -> RopeSpec:
    rope_type, known = rope_type_of(parameters), rope_types()
    if rope_type not in known:
        raise ValueError(f"unknown rope type {rope_type!r}; known are {', '.join(known)}.")
    method, stated_by, resonance = known[rope_type]
    stated_flag = parameters.get("resonance_rope")  # of one layer type
    parameters = {key: value for key, value in parameters.items() if key != "resonance_rope"}
    parameters = _known_keys(parameters, rope_type, stated_by.keys + _OF_EVERY_TYPE)
    for key, value in parameters.items():
        if value and key in stated_by.refused:
            raise ValueError(f"{rope_type} with {key}=true {stated_by.refused[key]}.")
    flag = stated_flag or config.get("resonance_rope") or False
    if not isinstance(flag, bool):
        raise ValueError(f"resonance_rope must be true or false, got {flag!r}.")
    top, inner = config.get("rope_theta"), parameters.get("rope_theta")
    if layer_type is None and None not in (top, inner) and top != inner:
        raise ValueError(
            f"rope_theta is {top!r} at the top level of the config, {inner!r} beside {rope_type!r}: keep one."
        )
    both: dict[str, Any] = {**{k: v for k, v in config.items() if v is not None}, **parameters}
    return RopeSpec(
        method=method,
        head_dim=_head_dim(config),
        base=both.get("rope_theta", 10_000.0),
        partial_rotary_factor=both.get("partial_rotary_factor", 1.0),
        resonance=flag or resonance,
        **_lengths(config, parameters, layer_type),
        **_options(parameters, stated_by, METHODS[method]),
    )


def _known_keys(parameters: Config, rope_type: str, keys: tuple[str, ...]) -> Config:
    """The keys that the type knows; of others transformers only warns, and so do we."""
    for key in parameters:
        if key.startswith("mrope"):
            raise ValueError(f"the key {key!r} gives a token several positions, which is not supported.")
        if key not in keys:
            warnings.warn(
                f"rope type {rope_type!r} does not know the key {key!r}, which is passed over, as "
                f"transformers does; it knows {', '.join(keys)}."
            )
    return {key: value for key, value in parameters.items() if key in keys}


def _head_dim(config: Config) -> Any:
    if config.get("head_dim") is not None:
        return config["head_dim"]
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(
            "the config must state head_dim, or a hidden_size that num_attention_heads divides; "
            f"got hidden_size={width}, num_attention_heads={heads}."
        )
    return width // heads


def _lengths(config: Config, parameters: Config, layer_type: str | None) -> dict[str, Any]:
    """Training length, and what `factor` states, under RopeSpec's names."""
    rope_type = rope_type_of(parameters)
    method, stated_by, _ = rope_types()[rope_type]

    def need(value: Any, key: str) -> Any:
        if value is None:
            raise ValueError(f"rope type {rope_type!r} needs {key}, and the config does not state it.")
        return value

    def number(stated: Config, key: str) -> Any:
        value = stated.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise ValueError(f"{key} must be a number, got {value!r}.")
        return value

    longest, factor = number(config, "max_position_embeddings"), number(parameters, "factor")
    original = number(parameters, "original_max_position_embeddings")
    if layer_type is None:  # transformers lets the top level win
        original = number(config, "original_max_position_embeddings") or original
    needed = METHODS[method].takes_train_length
    train_length = None
    if needed and stated_by.longest_is_trained:
        train_length = need(longest, "max_position_embeddings")
    elif needed:
        train_length = need(original or longest, "original_max_position_embeddings")
    if stated_by.factor is None:
        return {"train_length": train_length or original}
    if stated_by.without_factor == "lengths" and factor is None:
        factor = need(longest, "factor or max_position_embeddings") / train_length
    factor = factor or 1.0 if stated_by.without_factor == "one" else need(factor, "factor")
    if stated_by.least_one:
        factor = max(1.0, factor)
    if not needed:  # the longest may be before or after scaling
        train_length = original or (longest if factor == 1 else None)
    return {"train_length": train_length, stated_by.factor: factor}


def _options(parameters: Config, stated_by: RopeType, record: Method) -> dict[str, Any]:
    """The options that a RoPE dictionary states, by transformers' reading; a null switch is off."""
    options = {
        key: bool(value) if record.options[key].kind == "switch" else value
        for key in stated_by.keys
        if key in record.options and (value := parameters.get(key, _ABSENT)) is not _ABSENT
    }
    unset = [key for key in stated_by.zero_is_unset if not options.get(key)]
    if not all(options.get(key) for key in stated_by.only_together):
        unset += stated_by.only_together
    return {key: value for key, value in options.items() if value is not None and key not in unset}


_ABSENT = object()


def hf_type(spec: RopeSpec) -> str:
    """The rope type under which transformers computes this encoding; ValueError where it has none."""
    record = spec.method_record
    unnamed = ["Resonance"] if spec.resonance else []
    if record.hf_type is None:
        kind = "dynamic" if record.dynamic else "static"
        unnamed.append(f"{kind} {record.title.removeprefix('Dynamic ')}")
    else:
        stated_by = rope_types()[record.hf_type][1]
        stated = (*stated_by.keys, stated_by.factor)
        unnamed += [f"{name}={json.dumps(value)}" for name, value in spec.options if name not in stated]
    if unnamed:
        raise ValueError(
            f"transformers has no name for {unnamed[0]}; export the table instead: rope.to_longrope("
            "rope.frequencies(spec, length), base=..., train_length=..., length=...)."
        )
    return record.hf_type or ""


def to_hf(spec: RopeSpec, length: Given[int | None] = None) -> dict[str, object]:
    """The keys of config.json that state an encoding, for old transformers and new alike.

    Merge them into the model's config: `rope_parameters` (version 5), its twins `rope_scaling` and
    `rope_theta` (version 4), head_dim and the lengths.

    Args:
        spec: the encoding.
        length: the longest sequence, in positions. With it, an encoding that transformers has no name for
            (Resonance, static NTK, dynamic YaRN, the rotations ramp, an extrapolation factor) has its table
            written as `longrope`, by to_longrope; an encoding that has a name is stated by it all the same.

    Raises:
        ValueError: where transformers has no name for the encoding, and there is no length to write a table
            for, or no train_length.
    """
    try:
        rope_type = hf_type(spec)
    except ValueError:
        if length is None:
            raise
        if spec.train_length is None:
            raise ValueError(
                f"{spec.title} is written as `longrope`, which states the training length: give the spec a "
                "train_length."
            ) from None
        return to_longrope(
            frequencies(spec, length),
            base=spec.base,
            train_length=spec.train_length,
            length=int(length),
            head_dim=spec.head_dim,
        )
    record, stated_by = spec.method_record, rope_types()[rope_type][1]
    stated = dict(spec.options) | {name: getattr(spec, name) for name in stated_by.always_written}
    options = {key: stated[key] for key in stated_by.keys if key in stated}
    if "factor" in stated_by.keys and stated_by.factor is not None:
        options["factor"] = float(getattr(spec, stated_by.factor))
    if record.takes_train_length and not stated_by.longest_is_trained:
        options["original_max_position_embeddings"] = spec.train_length
    options |= record.hf_adds
    keys = _both_layouts(rope_type, spec.base, options, spec.partial_rotary_factor)
    if spec.train_length is not None:
        keys["max_position_embeddings"] = int(spec.scale * spec.train_length)
        if spec.scale > 1:
            keys["original_max_position_embeddings"] = spec.train_length
    return keys | {"head_dim": spec.head_dim}


def _both_layouts(rope_type: str, base: float, options: Config, partial: float) -> dict[str, object]:
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    shared = {"rope_theta": base} | ({"partial_rotary_factor": partial} if partial != 1 else {})
    return {
        "rope_parameters": {"rope_type": rope_type, **shared, **options},
        "rope_scaling": None if rope_type == "default" else {"type": rope_type, **options},
        **shared,
    }


def to_longrope(
    freqs: Frequencies, *, base: float, train_length: int, length: int, head_dim: int | None = None
) -> dict[str, object]:
    """Any table as config.json keys that unmodified transformers loads: type `longrope`, one list.

    transformers recovers the frequencies to 6e-7 relative (float32). A pair that never turns gets the factor
    1e30: its cos is 1 at any position. A resonant table also says `resonance_rope`, which transformers
    ignores and from_hf() reads: the integer wavelengths come back exactly.

    Args:
        freqs: the table, on the host.
        base: the rope_theta to write; any will do, as the factors are relative to it.
        train_length: L in positions, written as original_max_position_embeddings.
        length: L' in positions, written as max_position_embeddings.
        head_dim: H; needed where the rotary size is smaller.

    Raises:
        ValueError: unless 0 < train_length <= length, base > 1 and the head is wide enough, and for tracers.
    """
    inv_freq, rotary = freqs.inv_freq64, 2 * len(freqs.wavelength)
    width = rotary if head_dim is None else head_dim
    if not (0 < train_length <= length and base > 1 and width >= rotary):
        raise ValueError(
            f"expected 0 < train_length <= length, base > 1 and head_dim >= {rotary}; got "
            f"train_length={train_length}, length={length}, base={base}, head_dim={width}."
        )
    turning = inv_freq > 0
    plain = float(base) ** (-np.arange(0, rotary, 2) / rotary)
    factor = np.where(turning, plain / np.where(turning, inv_freq, 1.0), 1e30).tolist()
    options = {
        "factor": length / train_length,
        "attention_factor": float(host(freqs, "to_longrope")[2]),
        "short_factor": factor,
        "long_factor": factor,
        "original_max_position_embeddings": train_length,
    }
    partial = rotary / width
    if int(width * partial) < rotary:  # readers truncate the product, which rounding may have left short
        partial = math.nextafter(partial, 1)
    keys = _both_layouts("longrope", float(base), options, partial)
    keys |= {"max_position_embeddings": length, "original_max_position_embeddings": train_length}
    if head_dim is not None:
        keys["head_dim"] = head_dim
    if freqs.wavelength.any() and same(freqs, resonance(freqs)):
        keys["resonance_rope"] = True
    return keys
