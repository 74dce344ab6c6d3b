"""Hugging Face configs <-> RopeSpec, and any table at all as a config that transformers loads.

Both layouts are read and written: version 4 (`rope_scaling` beside a top-level `rope_theta`) and version 5
(`rope_parameters` with `rope_theta` inside). Numbers mean what transformers 5 makes of them; the types and
the flag of the Resonance release (`ntk`, `dynamic-yarn`, `resonance_yarn`, `resonance_rope`) mean what they
say, though the release does not always do it (explain() tells).
"""

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resonance_jax.rope.integer_wavelengths import resonance
from resonance_jax.rope.phases import Frequencies, host
from resonance_jax.rope.spec import RopeSpec, same

Config = Mapping[str, Any]

YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_LONGROPE = ("factor", "attention_factor", "short_factor", "long_factor")
_TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "default": ("default", ()),
    "linear": ("linear", ("factor",)),
    "dynamic": ("dynamic_ntk", ("factor",)),
    "yarn": ("yarn", ("factor", *YARN_OPTIONS, "finetuned")),
    "llama3": ("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": ("longrope", _LONGROPE),
    "su": ("longrope", _LONGROPE),
    "proportional": ("proportional", ("factor",)),
    "ntk": ("ntk", ("factor",)),
    "dynamic-yarn": ("dynamic_yarn", ("factor", *YARN_OPTIONS, "finetuned")),
    "dynamic_yarn": ("dynamic_yarn", ("factor", *YARN_OPTIONS, "finetuned")),
    "resonance_yarn": ("yarn", ("factor", *YARN_OPTIONS, "finetuned")),
}
"""Rope type -> our method and the type's own keys; transformers' types first, then the release's."""

HF_TYPES = {
    "default": "default",
    "linear": "linear",
    "dynamic_ntk": "dynamic",
    "ntk_by_parts": "yarn",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
    "proportional": "proportional",
}
"""Our method -> the rope type that transformers computes it under; no entry where it has none."""

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
)


def from_hf(config: Config, layer_type: str | None = None) -> RopeSpec:
    """The encoding that a model's config.json states, with the meaning that transformers 5 gives it.

    config: the parsed config.json, in the version 4 or 5 layout. layer_type: which one, where layers differ
    ("full_attention", …). `dynamic` takes max_position_embeddings for L, as transformers does; a type that
    has no length of its own gets a train_length only where the config states one. Raises ValueError for
    unknown types and keys, for what is missing, and for two layouts that contradict each other.
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


def layer_dicts(config: Config) -> dict[str | None, list[Config]]:
    """The RoPE dictionaries of a config by layer type (None: all layers alike), one for each layout used."""
    if not isinstance(config, Mapping):
        raise ValueError(f"expected a config as a dictionary, got {type(config).__name__}; try .to_dict().")
    for key, value in config.items():
        if value and key not in _TOP_LEVEL and re.search(r"(^|_)m?(rope|rotary)(_|$)", key):
            raise ValueError(f"unknown RoPE key {key!r} in the config; known are {', '.join(_TOP_LEVEL)}.")
    stated = [config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)]
    if not all(isinstance(parameters, Mapping) for parameters in stated):
        raise ValueError(f"rope_scaling and rope_parameters must be dictionaries, got {stated}.")
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
    return {**own, "truncate": truncate} if "yarn" in rope_type_of(own) else own


def rope_type_of(parameters: Config) -> str:
    """The type that a RoPE dictionary names, under its new key or its old one."""
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    return rope_type if isinstance(rope_type, str) else repr(rope_type)


def _spec(config: Config, parameters: Config, layer_type: str | None) -> RopeSpec:
    rope_type = rope_type_of(parameters)
    if rope_type not in _TYPES:
        raise ValueError(f"unknown rope type {rope_type!r}; known are {', '.join(_TYPES)}.")
    method, own = _TYPES[rope_type]
    for key in parameters:
        if key not in own + _OF_EVERY_TYPE:
            known = ", ".join(own + _OF_EVERY_TYPE)
            raise ValueError(f"rope type {rope_type!r} does not know the key {key!r}; it knows {known}.")
    if method == "dynamic_yarn" and parameters.get("finetuned"):
        raise ValueError(
            f"{rope_type} with finetuned=true starts at s = max / original, which no spec says: "
            "state it as yarn with a factor, or drop finetuned."
        )
    flag = config.get("resonance_rope") or False
    if not isinstance(flag, bool):
        raise ValueError(f"resonance_rope must be true or false, got {flag!r}.")
    both = {**{k: v for k, v in config.items() if v is not None}, **parameters}
    return RopeSpec(
        method=method,
        head_dim=_head_dim(config),
        base=both.get("rope_theta", 10_000.0),
        partial_rotary_factor=both.get("partial_rotary_factor", 1.0),
        resonance=flag or rope_type == "resonance_yarn",
        **_lengths(config, parameters, rope_type, layer_type),
        **_options(parameters, own),
    )


def _head_dim(config: Config) -> int:
    if config.get("head_dim") is not None:
        return config["head_dim"]
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(
            "the config must state head_dim, or a hidden_size that num_attention_heads divides; "
            f"got hidden_size={width}, num_attention_heads={heads}."
        )
    return width // heads


def _lengths(config: Config, parameters: Config, rope_type: str, layer_type: str | None) -> dict[str, Any]:
    """Training length and scale, under RopeSpec's names."""

    def need(value: Any, key: str) -> Any:
        if value is None:
            raise ValueError(f"rope type {rope_type!r} needs {key}, and the config does not state it.")
        return value

    def number(stated: Config, key: str) -> Any:
        value = stated.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise ValueError(f"{key} must be a number, got {value!r}.")
        return value

    method, _ = _TYPES[rope_type]
    longest, factor = number(config, "max_position_embeddings"), number(parameters, "factor")
    original = number(parameters, "original_max_position_embeddings")
    if layer_type is None:  # transformers lets the top level win
        original = number(config, "original_max_position_embeddings") or original
    if method == "dynamic_ntk":
        train_length = need(longest, "max_position_embeddings")
        return {"train_length": train_length, "dynamic_factor": need(factor, "factor")}
    if method in ("yarn", "dynamic_yarn", "llama3", "longrope"):
        train_length = need(original or longest, "original_max_position_embeddings")
        if method == "dynamic_yarn":
            return {"train_length": train_length}
        if method != "llama3" and factor is None:
            factor = need(longest, "factor or max_position_embeddings") / train_length
        if method == "longrope":
            factor = max(1.0, factor)  # it sets the attention factor alone, which never shrinks
        return {"train_length": train_length, "scale": need(factor, "factor")}
    factor = need(factor, "factor") if method in ("linear", "ntk") else factor or 1.0
    return {"train_length": original or (longest if factor == 1 else None), "scale": factor}


def _options(parameters: Config, own: tuple[str, ...]) -> dict[str, Any]:
    """The remaining options, by transformers' reading: zero is no value for YaRN's betas and mscales, one
    mscale without the other has no effect, and a null truncate is false."""
    options = {
        key: parameters[key]
        for key in own
        if key not in ("factor", "finetuned", "truncate") and parameters.get(key) is not None
    }
    if "truncate" in own and "truncate" in parameters:
        options["truncate"] = bool(parameters["truncate"])
    if not (options.get("mscale") and options.get("mscale_all_dim")):
        options |= {"mscale": 0, "mscale_all_dim": 0}
    zero = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    return {key: value for key, value in options.items() if value or key not in zero}


def hf_type(spec: RopeSpec) -> str:
    """The rope type under which transformers computes this encoding; ValueError where it has none."""
    unnamed = {
        "Resonance": spec.resonance,
        "static NTK": spec.method == "ntk",
        "dynamic YaRN": spec.method == "dynamic_yarn",
        'ramp="rotations"': spec.ramp != "dimension",
        f"extrapolation_factor={spec.extrapolation_factor}": spec.extrapolation_factor != 1,
    }
    for what, wanted in unnamed.items():
        if wanted:
            raise ValueError(
                f"transformers has no name for {what}; export the table instead: rope.to_longrope("
                "rope.frequencies(spec, length), base=..., train_length=..., length=...)."
            )
    return HF_TYPES[spec.method]


def to_hf(spec: RopeSpec) -> dict[str, Any]:
    """The keys of config.json that state an encoding, for old transformers and new alike.

    Merge them into the model's config: `rope_parameters` (version 5), its twins `rope_scaling` and
    `rope_theta` (version 4), head_dim and the lengths. Raises ValueError, naming to_longrope, where
    transformers has no name for the encoding: Resonance, static NTK, dynamic YaRN, the rotations ramp, an
    extrapolation factor.
    """
    rope_type = hf_type(spec)
    stated = spec.stated()
    options = {key: stated[key] for key in _TYPES[rope_type][1] if key in stated}
    if rope_type != "default":
        options["factor"] = float(spec.dynamic_factor if spec.method == "dynamic_ntk" else spec.scale)
    if rope_type in ("yarn", "llama3", "longrope"):
        options["original_max_position_embeddings"] = spec.train_length
    if spec.method == "ntk_by_parts":
        options["attention_factor"] = 1.0
    if spec.method == "llama3":
        options |= {"low_freq_factor": spec.low_freq_factor, "high_freq_factor": spec.high_freq_factor}
    keys = _both_layouts(rope_type, spec.base, options, spec.partial_rotary_factor)
    if spec.train_length is not None:
        keys["max_position_embeddings"] = int(spec.scale * spec.train_length)
        if spec.scale > 1:
            keys["original_max_position_embeddings"] = spec.train_length
    return keys | {"head_dim": spec.head_dim}


def _both_layouts(rope_type: str, base: float, options: dict[str, Any], partial: float) -> dict[str, Any]:
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    shared = {"rope_theta": base} | ({"partial_rotary_factor": partial} if partial != 1 else {})
    return {
        "rope_parameters": {"rope_type": rope_type, **shared, **options},
        "rope_scaling": None if rope_type == "default" else {"type": rope_type, **options},
        **shared,
    }


def to_longrope(
    freqs: Frequencies, *, base: float, train_length: int, length: int, head_dim: int | None = None
) -> dict[str, Any]:
    """Any table as config.json keys that unmodified transformers loads: type `longrope`, one list.

    base: the rope_theta to write (any; the factors are relative to it). train_length, length: L and L' in
    positions, written as original_max_position_embeddings and max_position_embeddings. head_dim: H, needed
    where the rotary size is smaller. transformers recovers the frequencies to 6e-7 relative (float32). A
    pair that never turns gets the factor 1e30: its cos is 1 at any position. A resonant table also says
    `resonance_rope`, which transformers ignores and from_hf() reads: the integer wavelengths come back
    exactly. Raises ValueError unless 0 < train_length <= length, base > 1 and the head is wide enough, and
    for tracers.
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
