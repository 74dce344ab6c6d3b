"""A GGUF model under Hugging Face's names: its config.json, and its tensors as slices read on demand.

What the rest of the library reads from a directory it reads from here unchanged. Names, keys and the order
of rows are llama.cpp's (gguf-py/gguf/constants.py and convert_hf_to_gguf.py).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from resonance_jax import rope
from resonance_jax.data.gguf_file import GgufFile, GgufTensor, Kind
from resonance_jax.data.gguf_tokenizer import special_ids
from resonance_jax.interop.families import ACTIVATIONS, FAMILIES

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's name of a tensor, of a layer after "blk.N.", -> Hugging Face's, of a layer after its prefix."""

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors that are no weights but divisors of the RoPE frequencies."""

FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Tensors that Gemma 3 names otherwise than the other architectures, or has beside theirs."""

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma3": "gemma3_text",
}
"""llama.cpp's architecture -> model_type, a name in families.FAMILIES."""

INTERLEAVED = ("llama", "smollm3")
"""Architectures whose q and k llama.cpp stores with the two dims of a rotated pair side by side."""

_LLAMA3 = [(8.0, 8192), (32.0, 8192)]
"""(factor, original length) of the published Llama 3 models; both with low factor 1 and high factor 4."""


class HalfSplitRows:
    """A tensor that can be read like a safetensors slice: get_shape(), get_dtype(), [rows, columns]; float32.

    Args:
        tensor: of the GGUF file.
        order: where row r is stored; None: rows stay as they are.
        added: what the converter added to every number, which is taken off again.
    """

    def __init__(
        self, tensor: GgufTensor, order: Int[np.ndarray, "rows"] | None = None, added: float = 0.0
    ) -> None:
        self._tensor, self._order, self._added = tensor, order, np.float32(added)

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Float[np.ndarray, "..."]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        rows = self._tensor.rows(first if self._order is None else self._order[first])
        rows = rows - self._added if self._added else rows
        return rows[(slice(None), *rest)]


def half_split_order(heads: int, head_dim: int) -> Int[np.ndarray, "rows"]:
    """Where llama.cpp keeps each row of q or k: pair j of a head is its rows 2j and 2j + 1, where the halves
    of Hugging Face's rotation are rows j and j + H/2."""
    stored = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def hf_name(name: str, architecture: str = "llama") -> str | None:
    """Hugging Face's name of a tensor; None for one that it does not have."""
    names = NAMES | (FOUR_NORMS if architecture == "gemma3" else {})
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    known = names.get(layer[2] if layer else stem)
    if known is None:
        return None
    return f"model.layers.{layer[1]}.{known}.{kind}" if layer else f"{known}.{kind}"


def hf_tensors(file: GgufFile) -> dict[str, HalfSplitRows]:
    """Every tensor of the model by Hugging Face's name. Raises ValueError for one that has none there."""
    config = hf_config(file)
    architecture = str(file.get("general.architecture", str))
    offset = float(str(FAMILIES[ARCHITECTURES[architecture]].fields.get("norm_offset", 0.0)))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for name, tensor in file.tensors.items():
        if name in ROPE_FACTORS:
            continue
        theirs = hf_name(name, architecture)
        if theirs is None:
            raise ValueError(f"{file.path} has the unknown tensor {name}.")
        part = name.split(".")[-2]
        order = None
        if architecture in INTERLEAVED and part in heads:
            order = half_split_order(heads[part], config["head_dim"])
            if len(order) != tensor.shape[0]:
                raise ValueError(
                    f"{file.path}: tensor {name} has {tensor.shape[0]} rows, but its metadata states "
                    f"{heads[part]} heads of {config['head_dim']}."
                )
        found[theirs] = HalfSplitRows(tensor, order, offset if len(tensor.shape) == 1 else 0.0)
    return found


def hf_config(file: GgufFile) -> dict[str, Any]:
    """The config.json that the metadata states. Raises ValueError naming the key that is missing or wrong."""
    architecture = str(file.get("general.architecture", str))
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file.path} holds the architecture {architecture!r}; supported are {', '.join(ARCHITECTURES)}."
        )

    def stated(key: str, kind: type[Kind], default: Kind | None = None) -> Kind:
        value = file.get(f"{architecture}.{key}", kind)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{file.path} states no {architecture}.{key}.")
        return value

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path} has no tensor token_embd.weight of two axes.")
    heads = stated("attention.head_count", int)
    head_dim = stated("attention.key_length", int, stated("embedding_length", int) // max(1, heads))
    family = FAMILIES[ARCHITECTURES[architecture]]
    config = {
        "model_type": ARCHITECTURES[architecture],
        "architectures": [family.kind],
        "vocab_size": embedding.shape[0],
        "hidden_size": stated("embedding_length", int),
        "intermediate_size": stated("feed_forward_length", int),
        "num_hidden_layers": stated("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": stated("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "rms_norm_eps": stated("attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": stated("context_length", int),
        "rope_theta": stated("rope.freq_base", float, 10_000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        family.activation: ACTIVATIONS[str(family.fields.get("mlp", "swiglu"))],
    }
    if architecture == "gemma3":
        # llama.cpp keeps neither: the factor of the 27B is another (its heads are smaller than D / N).
        scalar = config["hidden_size"] // heads if config["num_hidden_layers"] == 62 else head_dim
        config |= {
            "query_pre_attn_scalar": scalar,
            "sliding_window": stated("attention.sliding_window", int),
            "rope_theta": stated("rope.freq_base", float, 1e6),
            "rope_local_base_freq": stated("rope.freq_base_swa", float, 1e4),
        }
    rotated = stated("rope.dimension_count", int, head_dim)
    if rotated != head_dim:
        raise ValueError(
            f"{file.path} rotates {rotated} of a head's {head_dim} dims, where transformers' {family.kind} "
            "rotates all of them."
        )
    return {**config, **_scaling(file, architecture, config), **special_ids(file)}


def _scaling(file: GgufFile, architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_scaling, from the metadata's keys or from the divisors that are stored as tensors."""

    def read(key: str, kind: type[Kind]) -> Kind | None:
        return file.get(f"{architecture}.rope.scaling.{key}", kind)

    kind, factor = read("type", str) or "none", read("factor", float)
    original = read("original_context_length", int)
    longest = config["max_position_embeddings"]
    factors = {name: file.tensors[name].rows(slice(None)) for name in ROPE_FACTORS if name in file.tensors}
    if "rope_freqs.weight" in factors:
        return {"rope_scaling": _stored_factors(factors["rope_freqs.weight"], config)}
    scaling: dict[str, Any] = {}
    if kind == "longrope" or len(factors) == 2:
        if len(factors) != 2:
            raise ValueError(f"{file.path} states longrope, but lacks its tensors {ROPE_FACTORS[1:]}.")
        scaling = {
            "rope_type": "longrope",
            "short_factor": factors[ROPE_FACTORS[1]].tolist(),
            "long_factor": factors[ROPE_FACTORS[2]].tolist(),
            "original_max_position_embeddings": original or longest,
        }
        given = read("attn_factor", float)
        return {"rope_scaling": scaling | ({} if given is None else {"attention_factor": given})}
    if kind == "none" or not factor or factor == 1:
        return {}
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind != "yarn":
        raise ValueError(
            f"{file.path} states the RoPE scaling {kind!r}; known are none, linear, yarn, longrope."
        )
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original or round(longest / factor),
    }
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if (value := read(theirs, float)) is not None:
            scaling[ours] = value
    given = read("yarn_attn_factor", float) or read("attn_factor", float)
    if given is not None and given != 1.0:  # llama.cpp multiplies its own 0.1 ln s + 1 by it
        scaling["attention_factor"] = given * (0.1 * float(np.log(factor)) + 1.0)
    if (read("yarn_ext_factor", float) or 1.0) not in (1.0, -1.0):
        raise ValueError(f"{file.path} states a yarn_ext_factor other than 1, which no config.json says.")
    return {"rope_scaling": scaling}


def _stored_factors(factors: Float[np.ndarray, "pairs"], config: Mapping[str, Any]) -> dict[str, Any]:
    """Divisors of the frequencies: Llama 3's where they are, to float32, otherwise a list of longrope."""
    for factor, original in _LLAMA3:
        stated = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        made = _divisors(rope.from_hf({**config, "rope_scaling": stated}))
        if made.shape == factors.shape and np.allclose(made, factors, rtol=2e-6, atol=0):
            return stated
    listed = factors.astype(float).tolist()
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": 1.0,
        "short_factor": listed,
        "long_factor": listed,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }


def _divisors(spec: rope.RopeSpec) -> Float[np.ndarray, "pairs"]:
    plain = rope.RopeSpec(head_dim=spec.head_dim, base=spec.base)
    table: Callable[[rope.RopeSpec], np.ndarray] = lambda each: rope.frequencies(each).inv_freq64
    return table(plain) / table(spec)
