"""The families of models that Hugging Face's names are read for, each as data: one entry of FAMILIES.

A family says what config.json means: which fields of DecoderConfig its class always has, what transformers
assumes where the file is silent, and how its layers differ. Nothing is a subclass: the decoder is one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from resonance_jax.model import DecoderConfig, LayerType
from resonance_jax.rope import FULL, SLIDING

ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
"""DecoderConfig.mlp -> the activation of its gate."""

MOST_LAYERS = 10_000
"""More is damage, and would be a list that fills the memory."""
WITHOUT_ROPE = "_without_rope"
"""Ends the names of layer types that do not rotate."""

Stated = Mapping[str, Any]
"""A config.json, with what its family assumes filled in."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One class of transformers.

    Attributes:
        name: for people.
        kind: the class, as `architectures` names it.
        fields: of DecoderConfig, where they are not its defaults.
        absent: key -> what transformers assumes where config.json is silent.
        only: key -> the one value that the decoder computes, beside those of every family.
        activation: the key that names the activation.
        slides: (config.json, layer, whether it has RoPE) -> whether its window is a sliding one, where no
            `layer_types` says so; None: a family without layer types, whose window, if any, is every layer's.
        by_type: whether each layer type has an encoding of its own.
        more: DecoderConfig's fields that config.json computes, and `more_keys` the way back.
    """

    name: str
    kind: str
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    absent: Mapping[str, object] = dataclasses.field(default_factory=dict)
    only: Mapping[str, object] = dataclasses.field(default_factory=dict)
    activation: str = "hidden_act"
    slides: Callable[[Stated, int, bool], bool] | None = None
    by_type: bool = False
    more: Callable[[Stated], dict[str, Any]] = lambda _: {}
    more_keys: Callable[[DecoderConfig], dict[str, Any]] = lambda _: {}


def gemma_fields(stated: Stated) -> dict[str, Any]:
    """Gemma 3's factors on the embedded tokens, rounded to float32 as transformers does it, and on scores."""
    return {
        "embed_scale": float(np.float32(stated["hidden_size"] ** 0.5)),
        "attention_scale": float(stated["query_pre_attn_scalar"]) ** -0.5,
    }


def gemma_keys(config: DecoderConfig) -> dict[str, Any]:
    """The key that gives attention_scale back. Raises ValueError for a scale that no whole number gives."""
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    scalar = round(scale**-2) if scale > 0 else 0
    if scalar < 1 or abs(scalar**-0.5 - scale) > 1e-12 * scale:
        raise ValueError(
            f"Gemma 3's factor on the scores is one over the root of a whole number, not {scale}."
        )
    if (
        config.embed_scale
        != gemma_fields({"hidden_size": config.d_model, "query_pre_attn_scalar": 1})["embed_scale"]
    ):
        raise ValueError(f"Gemma 3's embed_scale is the root of d_model, not {config.embed_scale}.")
    return {"query_pre_attn_scalar": scalar}


def _late(stated: Stated, layer: int, _: bool) -> bool:
    return bool(stated.get("use_sliding_window")) and layer >= stated["max_window_layers"]


_EVERY = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_QWEN = _EVERY | {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LLaMA", "LlamaForCausalLM", absent=_EVERY, only={"layer_types": None}),
    "mistral": Family(
        "Mistral",
        "MistralForCausalLM",
        absent=_EVERY | {"num_key_value_heads": 8, "sliding_window": 4096},
        only={"layer_types": None},
    ),
    "qwen2": Family("Qwen2", "Qwen2ForCausalLM", {"qkv_bias": True}, absent=_QWEN, slides=_late),
    "qwen3": Family(
        "Qwen3", "Qwen3ForCausalLM", {"qk_norm": True}, absent=_QWEN | {"head_dim": 128}, slides=_late
    ),
    "smollm3": Family(
        "SmolLM3",
        "SmolLM3ForCausalLM",
        absent=_EVERY
        | {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
        slides=lambda stated, layer, rope: bool(stated["use_sliding_window"]) and not rope,
    ),
    "gemma3_text": Family(
        "Gemma 3",
        "Gemma3ForCausalLM",
        {"mlp": "geglu", "qk_norm": True, "post_norms": True, "norm_offset": 1.0},
        absent=_EVERY
        | {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
        only={
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        activation="hidden_activation",
        slides=lambda stated, layer, _: (layer + 1) % stated["sliding_window_pattern"] != 0,
        by_type=True,
        more=gemma_fields,
        more_keys=gemma_keys,
    ),
}
"""model_type -> its family."""


def read_types(family: Family, stated: Stated) -> tuple[LayerType, ...]:
    """The type of every layer, or the only one of a family whose layers are all alike.

    Raises ValueError for lists that do not fit, other kinds of attention, and more layers than any model has.
    """
    count, window = stated["num_hidden_layers"], stated.get("sliding_window")
    if family.slides is None:
        return (LayerType(FULL if window is None else SLIDING, window),)
    if count > MOST_LAYERS:
        raise ValueError(f"config.json states num_hidden_layers={count}, expected at most {MOST_LAYERS:,}.")
    rope = [True] * count
    if (interval := stated.get("no_rope_layer_interval")) is not None:
        rope = stated.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(count)]
    names = stated.get("layer_types")
    if names is None:
        names = [
            SLIDING if family.slides(stated, i, bool(has)) else FULL for i, has in enumerate(rope[:count])
        ]
    if not isinstance(names, list) or len(names) != count or len(rope) < count:
        raise ValueError(f"config.json: layer_types and no_rope_layers must list all {count} layers.")
    if odd := set(names) - {FULL, SLIDING}:
        raise ValueError(
            f"config.json states the layer type {min(map(str, odd))!r}, which is not supported; expected "
            f"{FULL} or {SLIDING}."
        )
    if SLIDING in names and (type(window) is not int or window < 1):
        raise ValueError(f"config.json has layers of {SLIDING}, but its sliding_window is {window!r}.")
    return tuple(
        LayerType(name + ("" if has else WITHOUT_ROPE), window if name == SLIDING else None, rope=bool(has))
        for name, has in zip(names, rope, strict=False)
    )


def types_keys(family: Family, config: DecoderConfig) -> dict[str, Any]:
    """The keys of config.json that state the layers' types.

    Raises ValueError where a family cannot say them: other names, or several windows.
    """
    windows = {kind.window for kind in config.types if kind.window is not None}
    if family.slides is None:
        return {} if family.name == "LLaMA" else {"sliding_window": config.window}
    names = [FULL if kind.window is None else SLIDING for kind in config.types]
    for name, kind in zip(names, config.types, strict=True):
        if kind.name != name + ("" if kind.rope else WITHOUT_ROPE) or len(windows) > 1:
            raise ValueError(
                f"{family.name} has layers of {FULL} and of one {SLIDING}, {WITHOUT_ROPE} behind the name "
                f"where they do not rotate; got {kind}."
            )
    keys: dict[str, Any] = {"layer_types": names, "sliding_window": min(windows, default=None)}
    if "use_sliding_window" in family.absent:
        keys["use_sliding_window"] = bool(windows)
    if "no_rope_layer_interval" in family.absent:
        keys["no_rope_layers"] = [int(kind.rope) for kind in config.types]
    elif not all(kind.rope for kind in config.types):
        raise ValueError(f"every layer of {family.name} uses RoPE; here some do not.")
    return keys


def family_of(config: DecoderConfig) -> str:
    """The model_type of the family that has a decoder's fields.

    Raises ValueError naming what no family here has.
    """
    for field, only in (("mlp", tuple(ACTIVATIONS)), ("rope_layout", ("half",)), ("head_scale", (None, 1.0))):
        refuse_other(config, field, only)
    fields = ("mlp", "qkv_bias", "qk_norm", "post_norms", "norm_offset")
    plain = {field.name: field.default for field in dataclasses.fields(DecoderConfig)}
    alike = [
        name
        for name, family in FAMILIES.items()
        if all(getattr(config, field) == family.fields.get(field, plain[field]) for field in fields)
    ]
    if not alike:
        stated = ", ".join(f"{field}={getattr(config, field)!r}" for field in fields)
        raise ValueError(
            f"none of Hugging Face's {', '.join(f.name for f in FAMILIES.values())} has {stated}."
        )
    if alike[0] != "llama":
        return alike[0]
    if config.layer_types is not None:
        return "smollm3"
    # transformers' LlamaConfig refuses sizes that the number of heads does not divide; Mistral's does not.
    return "llama" if config.window is None and config.d_model % config.n_heads == 0 else "mistral"


def refuse_other(config: DecoderConfig, field: str, only: tuple) -> None:
    """Raise ValueError where a field has another value than those that Hugging Face's models can have."""
    if getattr(config, field) not in only:
        raise ValueError(
            f"Hugging Face's models have no {field}={getattr(config, field)!r}; expected {only[0]!r}."
        )
