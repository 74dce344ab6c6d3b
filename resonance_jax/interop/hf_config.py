"""config.json of Hugging Face's LLaMA and Mistral <-> DecoderConfig and RopeSpec."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resonance_jax import rope
from resonance_jax.files import read_json
from resonance_jax.model import DecoderConfig

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
    "window": "sliding_window",
}
"""DecoderConfig's field -> config.json's key."""

_ABSENT = {
    "llama": {"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "mistral": {
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
"""What transformers assumes, by model_type, where config.json is silent."""

_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "layer_types": None,
}
"""Options of which the decoder computes one value."""

_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict. Raises ValueError when it is missing or not a JSON object."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json; expected a Hugging Face model directory.")
    config = read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, expected a JSON object.")
    return config


def from_hf_config(hf: dict[str, Any]) -> tuple[DecoderConfig, rope.RopeSpec]:
    """The decoder and the encoding that a config.json states (transformers 4 or 5; LLaMA 1-3, Mistral).

    Raises ValueError naming the key for another architecture, an option that the decoder does not compute
    (biases, another activation, quantisation, mixed layer types), and a value that is missing or no number.
    """
    family = hf.get("model_type")
    if (
        not isinstance(family, str)
        or family not in _CLASSES
        or hf.get("architectures") not in (None, [], [_CLASSES[family]])
    ):
        raise ValueError(
            f"config.json states model_type={shown(family)}, architectures={shown(hf.get('architectures'))}; "
            f"supported are {' and '.join(_CLASSES.values())}."
        )
    for key, only in _ONLY.items():
        if hf.get(key, only) not in (only, None):
            raise ValueError(
                f"config.json states {key}={shown(hf[key])}, which is not supported; expected {shown(only)}."
            )
    for where in (hf, hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}):
        if not isinstance(where, Mapping) or where.get("rope_type") == "proportional":
            continue  # whose own option it is, and whole heads are rotated
        partial = where.get("partial_rotary_factor")
        if partial not in (None, 1):
            raise ValueError(
                f"config.json states partial_rotary_factor={shown(partial)}, but transformers' "
                f"{_CLASSES[family]} rotates whole heads whatever it says, and other software rotates a "
                "part: take the key out to rotate whole heads."
            )
    given = _ABSENT[family] | hf
    if family == "llama":
        given["sliding_window"] = None  # transformers' LLaMA has no window, whatever the file says
    if given.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = given.get("num_attention_heads")
    if given.get("head_dim") is None:
        heads = _number(given, "num_attention_heads")
        given["head_dim"] = _number(given, "hidden_size") // heads
    fields = {
        field: given[key] if key == "sliding_window" and given[key] is None else _number(given, key)
        for field, key in KEYS.items()
    }
    return DecoderConfig(**fields), rope.from_hf(hf)


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
    """What of a checkpoint's config.json an export keeps: all that says nothing of its RoPE or its dtype."""
    gone = ("rope", "rotary", "original_max_position", "dtype", "max_position_embeddings", "auto_map")
    return {key: value for key, value in stated.items() if not any(word in key for word in gone)}


def to_hf_config(config: DecoderConfig, encoding: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that transformers reads as this decoder.

    encoding: the keys that state the RoPE (rope.to_hf, rope.to_longrope). dtype: of the stored weights.
    Raises ValueError naming the field that Hugging Face's LLaMA and Mistral cannot express.
    """
    for field, only in (
        ("layer_types", (None,)),
        ("mlp", ("swiglu",)),
        ("rope_layout", ("half",)),
        ("attention_scale", (None, config.head_dim**-0.5)),
        ("head_scale", (None, 1.0)),
    ):
        if getattr(config, field) not in only:
            raise ValueError(
                f"Hugging Face's LLaMA and Mistral have no {field}={getattr(config, field)!r}; "
                f"expected {only[0]!r}."
            )
    # transformers' LlamaConfig refuses sizes that the number of heads does not divide; Mistral's does not.
    plain = config.window is None and config.d_model % config.n_heads == 0
    family = "llama" if plain else "mistral"
    stated = {key: getattr(config, field) for field, key in KEYS.items()}
    if plain:
        del stated["sliding_window"]
    return {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        **stated,
        "hidden_act": "silu",
        "torch_dtype": dtype,
        **encoding,
    }
