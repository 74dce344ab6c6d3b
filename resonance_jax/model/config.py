"""What a decoder is, as data; nothing here knows how positions are encoded."""

import dataclasses

from resonance_jax.model.layer_types import LayerType, of_every_layer

_LATER = ("layer_types", "qkv_bias", "qk_norm", "post_norms", "norm_offset", "embed_scale")
"""Fields that earlier versions did not have."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder and how it computes. Hashable: one program is compiled per config.

    Attributes:
        n_kv_heads: key heads; fewer than n_heads is grouped-query attention.
        norm_eps: added to the mean square in every norm.
        tie_embeddings: the head is the embedding.
        window: how many keys a query sees; None for all.
        layer_types: where layers differ: a pattern of LayerTypes that repeats over the depth, or one per
            layer. Each states its own window. None: every layer is the same.
        mlp: "swiglu" (LLaMA), "geglu" (Gemma, whose GELU is the tanh approximation) or "relu" (T5).
        qkv_bias: queries, keys and values have a bias (Qwen2).
        qk_norm: queries and keys are normed, head by head, before they are rotated (Qwen3, Gemma 3).
        post_norms: what attention and the MLP add to the stream is normed first (Gemma 3).
        norm_offset: added to the weight of every norm: 1 where a norm multiplies by 1 + w (Gemma 3).
        embed_scale: multiplies the embedded tokens; None for 1 (Gemma 3 has sqrt(d_model)).
        rope_layout: which dims make a pair, "half" or "interleaved" (see rope.rotate).
        attention_scale: multiplies q.k; None for head_dim**-0.5 (T5 has 1).
        head_scale: multiplies the last hidden state; None for 1 (T5's tied head has d_model**-0.5).
        dropout: rate, in the places where T5 has it; applied only when a key is passed.
        init: first values, "llama" (normal 0.02) or "t5".
        dtype: of activations; norms, rotation, softmax and loss run in promote_types(float32, dtype).
        remat: what the gradient recomputes: "none" keeps every activation, "full" recomputes each layer,
            "attention" all of it but attention (where its kernel names what it keeps), "dots" keeps matrix
            products.
        kernel: the attention kernel; "auto" leaves the choice to model.kernel_choice.

    Raises:
        ValueError: a size that is not a positive whole number, or a name that is not one of those above.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    window: int | None = None
    layer_types: tuple[LayerType, ...] | None = None
    mlp: str = "swiglu"
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embed_scale: float | None = None
    rope_layout: str = "half"
    attention_scale: float | None = None
    head_scale: float | None = None
    dropout: float = 0.0
    init: str = "llama"
    dtype: str = "float32"
    remat: str = "none"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "window",
        ):
            value = getattr(self, name)
            if (name, value) != ("window", None) and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and {self.n_kv_heads}."
            )
        for name, allowed in (
            ("mlp", ("swiglu", "geglu", "relu")),
            ("rope_layout", ("half", "interleaved")),
            ("init", ("llama", "t5")),
            ("dtype", ("float32", "bfloat16", "float16", "float64")),
            ("remat", ("none", "full", "attention", "dots")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(allowed)}."
                )
        if self.layer_types is not None:
            object.__setattr__(self, "layer_types", tuple(self.layer_types))
            of_every_layer(self.layer_types, self.n_layers, self.window)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")

    @property
    def types(self) -> tuple[LayerType, ...]:
        """The type of every layer, in their order."""
        return of_every_layer(self.layer_types, self.n_layers, self.window)

    def to_dict(self) -> dict[str, object]:
        """The fields as plain values for JSON. Those that an earlier version did not have are left out while
        they say nothing, so that what it kept is still known as the same decoder's."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        stated = dataclasses.asdict(self)
        return {k: v for k, v in stated.items() if k not in _LATER or v != defaults[k]}

    def replace(self, **changes: object) -> "DecoderConfig":
        """The same config with other values in some fields."""
        return dataclasses.replace(self, **changes)


def _llama(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    n_kv_heads: int | None = None,
    tie_embeddings: bool = False,
    window: int | None = None,
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads or n_heads,
        head_dim=d_model // n_heads,
        d_ff=d_ff,
        tie_embeddings=tie_embeddings,
        window=window,
    )


_T5 = DecoderConfig(
    vocab_size=22,
    d_model=512,
    n_layers=2,
    n_heads=8,
    n_kv_heads=8,
    head_dim=64,
    d_ff=2048,
    norm_eps=1e-6,
    tie_embeddings=True,
    mlp="relu",
    rope_layout="interleaved",
    attention_scale=1.0,
    head_scale=512**-0.5,
    dropout=0.1,
    init="t5",
)

PRESETS: dict[str, DecoderConfig] = {
    "tiny": _llama(258, 128, 2, 2, 344, tie_embeddings=True),
    "llama-50m": _llama(32_000, 512, 6, 8, 1376),
    "llama2-7b": _llama(32_000, 4096, 32, 32, 11_008),
    "llama2-13b": _llama(32_000, 5120, 40, 40, 13_824),
    "llama3.1-8b": _llama(128_256, 4096, 32, 32, 14_336, n_kv_heads=8),
    "mistral-7b": _llama(32_000, 4096, 32, 32, 14_336, n_kv_heads=8, window=4096),
    "t5-small-decoder": _T5,
}
"""Named shapes. `llama-50m` is the benchmark's; `t5-small-decoder` is PosGen's (two layers, as the paper)."""
