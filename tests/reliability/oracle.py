"""What a mutated checkpoint and text really give: a LLaMA in NumPy, written apart from ours.

It reads the files itself and computes in any precision. Float64 is the truth; the gap between float32 and
float64 says what rounding costs on this very input, so that a model made ill by its mutation is no excuse for
a wrong number, and no false alarm.
"""

import json
from pathlib import Path

import numpy as np


class NoTruth(Exception):
    """The files say nothing that could be computed."""


def perplexity(folder: Path, documents: list[list[int]], bos: int | None, length: int, kind: type) -> float:
    """exp of the mean NLL per token over the first `length` positions of every document, BOS included.

    Args:
        folder: a Hugging Face directory.
        documents: token ids without BOS.
        bos: stands in front of each, None: nothing does.
        length: positions.
        kind: the NumPy type that is computed in.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = {name: value.astype(kind) for name, value in tensors(folder).items()}
    front = [] if bos is None else [bos]
    rows = np.array([(front + ids)[:length] for ids in documents])
    with np.errstate(all="ignore"):
        logits = forward(config, weights, rows, kind)[:, :-1]
        top = logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
        chosen = np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]
        return float(np.exp((log_sum - chosen).astype(np.float64).mean()))


def forward(config: dict, w: dict[str, np.ndarray], rows: np.ndarray, kind: type) -> np.ndarray:
    """The logits of LLaMA, [rows, positions, vocabulary]."""
    n, T = rows.shape
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    eps = kind(config.get("rms_norm_eps", 1e-6))
    angles = np.arange(T)[:, None] * inverse_frequencies(config, size)[None]
    cos, sin = (np.tile(f(angles), 2).astype(kind) for f in (np.cos, np.sin))
    future = np.triu(np.ones((T, T), bool), 1)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale

    def turned(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, -1)
        return x * cos + np.concatenate([-b, a], -1) * sin

    def split(x: np.ndarray, count: int) -> np.ndarray:
        return np.repeat(x.reshape(n, T, count, size).transpose(0, 2, 1, 3), heads // count, 1)

    x = w["model.embed_tokens.weight"][rows]
    for layer in range(config["num_hidden_layers"]):
        of = lambda name, layer=layer: w[f"model.layers.{layer}.{name}.weight"]
        h = norm(x, of("input_layernorm"))
        q = turned(split(h @ of("self_attn.q_proj").T, heads))
        k = turned(split(h @ of("self_attn.k_proj").T, kv_heads))
        v = split(h @ of("self_attn.v_proj").T, kv_heads)
        scores = np.where(future, -np.inf, q @ k.transpose(0, 1, 3, 2) / kind(size**0.5))
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(n, T, -1)
        x = x + mixed @ of("self_attn.o_proj").T
        h = norm(x, of("post_attention_layernorm"))
        gate = h @ of("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
    tied = config.get("tie_word_embeddings", False)
    return norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def inverse_frequencies(config: dict, size: int) -> np.ndarray:
    """Radians per position of every pair of a head, under plain RoPE or linear scaling."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = stated.get("rope_theta") or config.get("rope_theta") or 10_000.0
    kind = stated.get("rope_type") or stated.get("type") or "default"
    if kind not in ("default", "linear"):
        raise NoTruth(f"rope type {kind}")
    factor = stated.get("factor", 1.0) if kind == "linear" else 1.0
    return theta ** (-np.arange(0, size, 2) / size) / factor


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of model.safetensors, read by the format's description."""
    content = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")

    def once(pairs: list) -> dict:
        found = dict(pairs)
        if any(value != found[name] for name, value in pairs):
            raise NoTruth("two things under one name")
        return found

    found = {}
    for name, entry in json.loads(content[8:start], object_pairs_hook=once).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            found[name] = _numbers(content[start + first : start + last], entry["dtype"], entry["shape"])
    return found


def _numbers(content: bytes, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "BF16":
        wide = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return np.frombuffer(content, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).reshape(shape)
