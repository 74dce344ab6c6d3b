"""config.json of Hugging Face's families (interop.families) <-> DecoderConfig and RopeSpec."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resonance_jax import rope
from resonance_jax.files import read_json
from resonance_jax.interop.families import (
    ACTIVATIONS,
    FAMILIES,
    Family,
    family_of,
    read_types,
    refuse_other,
    types_keys,
)
from resonance_jax.model import DecoderConfig
from resonance_jax.model.layer_types import rotated

KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
"""DecoderConfig's field -> config.json's key."""

_ONLY = {"attention_bias": False, "mlp_bias": False, "quantization_config": None}
"""Options of which the decoder computes one value."""

_NOT_COMPUTED = {
    "vision_config": "a vision tower",
    "audio_config": "an audio tower",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
}
"""Keys of what is not computed here, by what they state."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict. Raises ValueError when it is missing or not a JSON object."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json; expected a Hugging Face model directory.")
    config = read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, expected a JSON object.")
    return config


def from_hf_config(hf: dict[str, Any]) -> tuple[DecoderConfig, rope.Specs]:
    """The decoder and the encoding that a config.json states, in transformers 4's or 5's layout.

    Where layer types have encodings of their own, these are LayerSpecs. Raises ValueError naming the key for
    another architecture, an option that the decoder does not compute (other biases, another activation,
    quantisation, experts, a vision tower), and a value that is missing or no number.
    """
    name = hf.get("model_type")
    for key, what in _NOT_COMPUTED.items():
        if hf.get(key):
            raise ValueError(
                f"config.json states {what} ({key}={shown(hf[key])}), which is not computed here."
            )
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None or hf.get("architectures") not in (None, [], [family.kind]):
        kinds = [each.kind for each in FAMILIES.values()]
        raise ValueError(
            f"config.json states model_type={shown(name)}, architectures={shown(hf.get('architectures'))}; "
            f"supported are {', '.join(kinds[:-1])} and {kinds[-1]}."
        )
    activation = ACTIVATIONS[str(family.fields.get("mlp", "swiglu"))]
    for key, only in ({family.activation: activation} | _ONLY | dict(family.only)).items():
        if hf.get(key, only) not in (only, None):
            raise ValueError(
                f"config.json states {key}={shown(hf[key])}, which is not supported; expected {shown(only)}."
            )
    _refuse_partial(hf, family)
    given = dict(family.absent) | {
        key: hf[key] for key in hf if hf[key] is not None or key == "sliding_window"
    }
    if family.name == "LLaMA":
        given["sliding_window"] = None  # transformers' LLaMA has no window, whatever the file says
    if hf.get("num_key_value_heads", 1) is None or given.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = given.get("num_attention_heads")
    if given.get("head_dim") is None:
        heads = _number(given, "num_attention_heads")
        given["head_dim"] = _number(given, "hidden_size") // heads
    fields = {field: _number(given, key) for field, key in KEYS.items()}
    for key in ("query_pre_attn_scalar", "sliding_window_pattern", "no_rope_layer_interval"):
        if key in family.absent:
            _number(given, key)
    if family.slides is None and given.get("sliding_window") is not None:
        _number(given, "sliding_window")
    types = read_types(family, given)
    same = len(set(types)) == 1 and types[0].rope
    config = DecoderConfig(
        **fields,
        **family.fields,
        **family.more(given),
        window=types[0].window if same else None,
        layer_types=None if same else types,
    )
    return config, rope.specs_from_hf(_with_bases(hf, family, given), rotated(types))


def _with_bases(hf: dict[str, Any], family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json with what its family assumes of the RoPE filled in, where it is silent."""
    silent = {key: given[key] for key in ("head_dim",) if key in family.absent}
    parameters = hf.get("rope_parameters") or {}
    by_type = isinstance(parameters, Mapping) and any(isinstance(own, Mapping) for own in parameters.values())
    if by_type:
        bases = {rope.FULL: "rope_theta", rope.SLIDING: "rope_local_base_freq"}
        assumed = {name: {"rope_theta": given[key]} for name, key in bases.items() if key in family.absent}
        stated = {
            name: {**assumed.get(name, {}), **own} if isinstance(own, Mapping) else own
            for name, own in parameters.items()
        }
        return {**hf, **silent, "rope_parameters": stated}
    for key in ("rope_theta", "rope_local_base_freq"):
        if key in family.absent and key not in (parameters if isinstance(parameters, Mapping) else {}):
            silent[key] = given[key]
    return {**hf, **silent}


def _refuse_partial(hf: dict[str, Any], family: Family) -> None:
    """Raise ValueError where a part of each head would be rotated by some programs only."""
    for where in (hf, hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}):
        if not isinstance(where, Mapping) or where.get("rope_type") == "proportional":
            continue  # whose own option it is, and whole heads are rotated
        partial = where.get("partial_rotary_factor")
        if partial not in (None, 1):
            raise ValueError(
                f"config.json states partial_rotary_factor={shown(partial)}, but transformers' "
                f"{family.kind} rotates whole heads whatever it says, and other software rotates a "
                "part: take the key out to rotate whole heads."
            )


def shown(value: object) -> str:
    """A value as JSON spells it, cut to 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _number(hf: dict[str, Any], key: str) -> Any:
    kind = {"tie_word_embeddings": bool, "rms_norm_eps": float}.get(key, int)
    value = hf.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    if value is None or type(value) is not kind or (kind is not bool and value <= 0):
        found = "is missing" if value is None else f"is {shown(value)}"
        wanted = "true or false" if kind is bool else f"a positive {'number' if kind is float else 'integer'}"
        raise ValueError(f"config.json: {key} {found}, expected {wanted}.")
    return value


def stated_context(hf: dict[str, Any]) -> int | None:
    """max_position_embeddings, None where config.json does not state it; ValueError for what is no length."""
    value = hf.get("max_position_embeddings")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else _number({"max_position_embeddings": value}, "max_position_embeddings")


def kept_keys(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a checkpoint's config.json that an export keeps: all but those of its RoPE and dtype."""
    gone = ("rope", "rotary", "original_max_position", "dtype", "max_position_embeddings", "auto_map")
    return {key: value for key, value in stated.items() if not any(word in key for word in gone)}


def to_hf_config(config: DecoderConfig, encoding: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that transformers reads as this decoder.

    Args:
        config: the decoder.
        encoding: the keys that state the RoPE (rope.to_hf, rope.to_longrope).
        dtype: of the stored weights.

    Raises:
        ValueError: names the field that none of Hugging Face's families can express.
    """
    name = family_of(config)
    family = FAMILIES[name]
    if "query_pre_attn_scalar" not in family.absent:
        refuse_other(config, "attention_scale", (None, config.head_dim**-0.5))
        refuse_other(config, "embed_scale", (None, 1.0))
    return {
        "architectures": [family.kind],
        "model_type": name,
        **{key: getattr(config, field) for field, key in KEYS.items()},
        **types_keys(family, config),
        **family.more_keys(config),
        family.activation: ACTIVATIONS[config.mlp],
        "torch_dtype": dtype,
        **encoding,
    }
