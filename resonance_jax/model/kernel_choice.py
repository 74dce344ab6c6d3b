"""One attention function over four kernels. The kernel is chosen here, logged once, and can be forced.

In order of preference: splash (TPU), cuDNN (GPU), block pairs (any device, O(T) memory), XLA (short
sequences, dropout). Attention over a cache is in cached_attention.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from resonance_jax.model.block_pairs import block_pairs
from resonance_jax.model.lowering import default_precision, target
from resonance_jax.model.lowering import lowering_for as lowering_for
from resonance_jax.model.splash import splash
from resonance_jax.model.suitable_dtype import suitable_dtype
from resonance_jax.model.xla_attention import xla_attention

KERNELS = ("auto", "xla", "block_pairs", "cudnn", "splash")
SHORT_QUERIES = 128
SHORT_SCORES = 256 * 256

_log = logging.getLogger("resonance_jax")
_reported: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Request:
    """What a kernel is chosen by.

    Attributes:
        platform, capability: see model.lowering.
        dtype: of queries, keys and values.
        T, S, H: how many queries and keys there are, and the head size.
        causal, window, dropout: as in `attention`; dropout is whether there is any.
        segments: None, "shared" (queries and keys have the same segments) or "own" (keys have their own).
        offset: key position of query 0; None when it is an array.
        precision: of products that state none, jax's name; "None" is jax's default.
    """

    platform: str
    capability: tuple[int, int] | None
    dtype: str
    T: int
    S: int
    H: int
    causal: bool = True
    window: int | None = None
    segments: str | None = None
    offset: int | None = 0
    dropout: bool = False
    precision: str = "None"


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
    kv_segment_ids: Int[Array | np.ndarray, "B S"] | None = None,
    offset: int | Int[Array | np.ndarray, ""] | Int[Array | np.ndarray, "B"] | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    kernel: str = "auto",
) -> Float[Array, "B T N H"]:
    """Grouped-query softmax attention, by the kernel that suits the request.

    Query t stands at key position p = t + offset. A query that may see no key gives zeros. Softmax statistics
    are in promote_types(float32, dtype).

    Args:
        q: queries.
        k, v: keys and values in q's dtype; N is a multiple of K, query head n reads key head n // (N // K).
        causal: see keys 0 … p only.
        window: of those see only the last `window`, keys p - window + 1 … p (Hugging Face's sliding_window).
        segment_ids: of the queries; a query sees keys of its own segment only.
        kv_segment_ids: of the keys; default segment_ids.
        offset: key position of query 0; default S - T, the queries aligned to the end of the keys. As an
            array, traced or not, it goes with the XLA kernel only; [B] is an offset per row.
        scale: factor on the scores; default H ** -0.5.
        dropout: rate on the attention weights (XLA kernel only); needs `key`.
        key: of the random numbers for dropout.
        kernel: "auto", or one of "xla", "block_pairs", "cudnn", "splash".

    Returns:
        What each query attends to, in q's dtype.

    Raises:
        ValueError: shapes or options that do not fit, or a forced kernel that cannot do what is asked.
    """
    _check(q, k, v, causal, window, segment_ids, kv_segment_ids, dropout, key)
    T, S, H = q.shape[1], k.shape[1], q.shape[3]
    if offset is None or not causal:
        offset = S - T  # without causality it means nothing
    factor: float = H**-0.5 if scale is None else scale
    static_offset = int(offset) if isinstance(offset, int | np.integer) else None
    platform, capability = target()
    request = Request(
        platform=platform,
        capability=capability,
        dtype=q.dtype.name,
        T=T,
        S=S,
        H=H,
        causal=causal,
        window=window,
        segments=None if segment_ids is None else "shared" if kv_segment_ids is None else "own",
        offset=static_offset,
        dropout=dropout > 0,
        precision=default_precision(),
    )
    name, reason = choose(request, kernel)
    if (name, reason) not in _reported:
        _reported.add((name, reason))
        _log.info("attention: %s (%s)", name, reason)
    of_keys = segment_ids if kv_segment_ids is None else kv_segment_ids
    if name == "xla" or static_offset is None:  # which every other kernel refuses
        return xla_attention(
            q,
            k,
            v,
            causal=causal,
            window=window,
            segment_ids=segment_ids,
            kv_segment_ids=of_keys,
            offset=offset,
            scale=factor,
            dropout=dropout,
            key=key,
        )
    if name == "splash":
        return splash(
            q, k, v, causal=causal, window=window, segment_ids=segment_ids, offset=static_offset, scale=factor
        )
    if name == "cudnn":
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, scale=factor, is_causal=causal, local_window_size=local, implementation="cudnn"
        )
    return block_pairs(
        q,
        k,
        v,
        causal=causal,
        window=window,
        segment_ids=segment_ids,
        kv_segment_ids=of_keys,
        offset=static_offset,
        scale=factor,
    )


def choose(request: Request, kernel: str = "auto") -> tuple[str, str]:
    """The kernel that runs a request, and why.

    Args:
        request: what is asked.
        kernel: "auto", or the name of a kernel to force.

    Raises:
        ValueError: an unknown kernel, or a forced one that cannot do what is asked.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel {kernel!r} is not one of {', '.join(KERNELS)}.")
    if kernel != "auto":
        refusal = _REFUSALS[kernel](request)
        if refusal:
            raise ValueError(f"attention kernel {kernel!r} {refusal}; use kernel='auto' or another one.")
        return kernel, "asked for"
    if request.dropout:
        return "xla", "dropout on the weights"
    if request.T < SHORT_QUERIES or request.T * request.S < SHORT_SCORES:
        return "xla", f"short: fewer than {SHORT_QUERIES} queries or {SHORT_SCORES} scores per head"
    best = {"tpu": "splash", "gpu": "cudnn"}.get(request.platform)
    refusal = _REFUSALS[best](request) if best else None
    if best and refusal is None:
        return best, f"the fused kernel of this {request.platform}"
    why = f"{best} {refusal}" if best else f"no fused kernel on {request.platform}"
    refusal = _refuse_block_pairs(request)
    return ("xla", f"{why}; block_pairs {refusal}") if refusal else ("block_pairs", why)


def kernel_for(dtype: str, T: int, H: int, kernel: str = "auto") -> str:
    """The kernel that a causal sequence of T tokens runs on here, by the precision that is set now.

    Args:
        dtype: of queries, keys and values.
        T: tokens.
        H: head size.
        kernel: the name of one to force, or "auto".
    """
    platform, capability = target()
    return choose(Request(platform, capability, dtype, T, T, H, precision=default_precision()), kernel)[0]


class Choice(NamedTuple):
    """The dtype and the kernel that suit a machine, and why, as text for people."""

    platform: str
    dtype: str
    kernel: str
    reason: str


def on_this_machine(T: int = 4096, H: int = 128) -> Choice:
    """The dtype and the kernel that suit this machine.

    The dtype is that of model.suitable_dtype.

    Args:
        T: tokens of a sequence.
        H: head size.
    """
    platform, capability = target()
    dtype = suitable_dtype().name
    name = platform + (f" (compute capability {capability[0]}.{capability[1]})" if capability else "")
    kernel, reason = choose(Request(platform, capability, dtype, T, T, H))
    return Choice(name, dtype, kernel, reason)


def _refuse_xla(_: Request) -> str | None:
    return None


def _refuse_block_pairs(r: Request) -> str | None:
    if r.dropout:
        return "cannot drop attention weights"
    if r.offset is None:
        return "needs an offset that is an int"
    return None


def _refuse_lonely_queries(r: Request) -> str | None:
    """The fused kernels give NaN, or the mean of v, where ours give zeros."""
    if r.causal and r.offset is not None:
        last_query = r.offset + r.T - 1
        if r.offset < 0 or (r.window is not None and last_query - r.window + 1 >= r.S):
            return "needs at least one key for every query"
    return None


def _refuse_cudnn(r: Request) -> str | None:
    capability = r.capability or (0, 0)
    if r.platform != "gpu" or capability < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    if r.dtype not in ("bfloat16", "float16"):
        return f"needs bfloat16 or float16, not {r.dtype}"
    largest = 128 if capability < (9, 0) else 256
    if r.H % 8 or largest < r.H:
        return f"needs a head size that is a multiple of 8 up to {largest}, not {r.H}"
    if r.segments:
        return "cannot keep segments apart without a [T, S] mask"
    if r.causal and r.offset != 0:
        return "aligns queries to the start of the keys, so that it needs offset 0"
    return _refuse_lonely_queries(r) or _refuse_block_pairs(r)


def _refuse_splash(r: Request) -> str | None:
    if r.platform != "tpu":
        return "needs a TPU"
    if r.dtype not in ("bfloat16", "float32"):
        return f"needs bfloat16 or float32, not {r.dtype}"
    if r.precision not in _BY_MOSAIC[r.dtype]:
        return f"cannot multiply {r.dtype} numbers as {r.precision}"
    if r.segments == "own" or (r.segments and (r.T != r.S or r.offset != 0)):
        return "needs segments that queries and keys share, or a query might see no key"
    return _refuse_lonely_queries(r) or _refuse_block_pairs(r)


_ONE_PASS = ("None", "default", "bfloat16")
_BY_MOSAIC = {"bfloat16": _ONE_PASS, "float32": (*_ONE_PASS, "float32", "highest")}
"""By dtype, the precisions of products that the compiler of TPU kernels has; it fails at others."""

_REFUSALS: dict[str, Callable[[Request], str | None]] = {
    "xla": _refuse_xla,
    "block_pairs": _refuse_block_pairs,
    "cudnn": _refuse_cudnn,
    "splash": _refuse_splash,
}
"""By kernel: why it cannot do what is asked, or None."""


def _check(
    q: Float[Array, "..."],
    k: Float[Array, "..."],
    v: Float[Array, "..."],
    causal: bool,
    window: int | None,
    segment_ids: Int[Array | np.ndarray, "..."] | None,
    kv_segment_ids: Int[Array | np.ndarray, "..."] | None,
    dropout: float,
    key: Key[Array, ""] | None,
) -> None:
    """Raise ValueError for arguments of `attention` that do not fit together."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"expected q [B, T, N, H] and k, v [B, S, K, H], got {q.shape}, {k.shape}, {v.shape}."
        )
    B, T, N, H = q.shape
    if (k.shape[0], k.shape[3]) != (B, H) or N % k.shape[2] or not T or not k.shape[1]:
        raise ValueError(
            f"q {q.shape} and k {k.shape} must share B and H, with N a multiple of K, and be at least 1 long."
        )
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"q, k and v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}.")
    if window is not None and (not causal or window < 1):
        raise ValueError(f"a window must be at least 1 and causal, got window={window}, causal={causal}.")
    if segment_ids is None and kv_segment_ids is not None:
        raise ValueError("kv_segment_ids needs segment_ids, the segments of the queries.")
    if segment_ids is not None:
        theirs = segment_ids if kv_segment_ids is None else kv_segment_ids
        if segment_ids.shape != (B, T) or theirs.shape != k.shape[:2]:
            raise ValueError(
                f"expected segment_ids {(B, T)} and kv_segment_ids {k.shape[:2]} (default: segment_ids), "
                f"got {segment_ids.shape}, {theirs.shape}."
            )
    if not (0 <= dropout < 1) or (dropout and key is None):
        raise ValueError(f"dropout must be in [0, 1) and comes with a key, got {dropout} and key={key}.")
