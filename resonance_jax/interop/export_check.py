"""An exported directory in unmodified transformers: logits, NLL and greedy output beside ours.

What differs is split in two: what transformers' float32 phases lose (transformers against itself with our
cosines and sines put in), and the rest (transformers with our phases against ours: the order of sums).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from resonance_jax import rope
from resonance_jax.evaluate.nll import token_nll
from resonance_jax.generate import generate
from resonance_jax.interop.hf_weights import load_hf
from resonance_jax.model import Decoder
from resonance_jax.model.decoder import Weights, head, hidden_states
from resonance_jax.model.stack import turns

if TYPE_CHECKING:
    import torch

ROWS = 128
"""Positions whose logits are compared, evenly spread."""
_TILE = 1024


def check_export(
    folder: str | Path, tokens: np.ndarray, lengths: Sequence[int], train_length: int, new_tokens: int = 100
) -> dict[str, Any]:
    """Compare a Hugging Face directory in transformers and here, both in float32.

    tokens: i32[n], scored at each of `lengths` (prefixes of it). Returns "rows", one per length, and
    "greedy". Differences of logits are in standard deviations of our logits, those of NLL in nats per token:

        logits, nll_difference (its mean NLL minus ours)     transformers as it is
        logits_alike, nll_difference_alike                   with our cosines and sines
        logits_lost, nll_lost, cos_error                     what its own float32 phases change

    greedy: up to new_tokens tokens after a prompt, all within train_length; "identical", "tokens", and where
    they differ "first_difference"; "smallest_margin" is how far apart our two best logits come. Needs torch
    and transformers.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    lm = load_hf(folder)
    assert lm.rope is not None  # a config.json always states one
    spec = lm.rope
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    with jax.default_matmul_precision("highest"), torch.no_grad():
        # Before anything is put in, and shortest first: transformers' dynamic tables only grow.
        greedy = _greedy(lm, spec, model, tokens, train_length, new_tokens)
        rows = [_compare(lm, spec, model, tokens[:n]) for n in sorted(set(lengths))]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"rows": rows, "greedy": greedy, "versions": versions}


def _compare(lm: Decoder, spec: rope.Specs, model: Any, tokens: np.ndarray) -> dict[str, Any]:
    n = len(tokens)
    freqs = rope.frequencies(spec, length=n)
    angles = turns(lm.config, freqs, np.arange(n), np.float32)
    exact = {name: (np.asarray(cos), np.asarray(sin)) for name, (cos, sin) in angles.items()}
    picked = np.unique(np.linspace(0, n - 1, min(ROWS, n)).astype(int))
    logits = _logits(lm, tokens, freqs, picked)
    nll = np.asarray(token_nll(lm, tokens[None], freqs), np.float64)[0]
    own = model.model.rotary_emb
    theirs, their_nll = _theirs(model, tokens, picked)
    error = max((_cos_error(model, freqs, name, cos) for name, (cos, _) in exact.items()), default=0.0)
    model.model.rotary_emb = injected(exact)
    try:
        alike, alike_nll = _theirs(model, tokens, picked)
    finally:
        model.model.rotary_emb = own
    far = lambda a, b: float(np.abs(a - b).max() / logits.std())
    return {
        "length": n,
        "perplexity": float(np.exp(nll.mean())),
        "perplexity_transformers": float(np.exp(their_nll.mean())),
        "nll_difference": float((their_nll - nll).mean()),
        "nll_difference_alike": float((alike_nll - nll).mean()),
        "nll_lost": float((their_nll - alike_nll).mean()),
        "logits": far(theirs, logits),
        "logits_alike": far(alike, logits),
        "logits_lost": far(theirs, alike),
        "cos_error": error,
    }


def _logits(lm: Decoder, tokens: np.ndarray, freqs: rope.Tables, picked: np.ndarray) -> np.ndarray:
    """f64[picked, V]: the whole sequence goes through the layers, the picked positions through the head."""

    def some(params: Weights, tokens: Int[Array, "B T"], freqs: rope.Tables) -> Float[Array, "picked V"]:
        return hidden_states(lm.config, params, tokens, freqs)[0, picked] @ head(lm.config, params)

    return np.asarray(jax.jit(some)(lm.params, tokens[None], freqs), np.float64)


def _cos_error(model: Any, freqs: rope.Tables, name: str, exact: np.ndarray) -> float:
    """How far transformers' cosines of a layer type are from exact ones [n, R/2], without the factor."""
    import torch

    by_type = [name] if isinstance(freqs, dict) else []
    cos, _ = model.model.rotary_emb(torch.zeros(1), torch.arange(len(exact))[None], *by_type)
    factor = (freqs[name] if isinstance(freqs, dict) else freqs).attention_factor
    return float(np.abs(cos[0, :, : exact.shape[1]].numpy() - exact).max() / factor)


def _theirs(model: Any, tokens: np.ndarray, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """transformers' logits f64[picked, V] and NLL f64[n-1]."""
    import torch

    ids = torch.as_tensor(tokens, dtype=torch.long)[None]
    hidden = model.model(ids, use_cache=False).last_hidden_state
    nll = []
    for x, targets in zip(hidden[0, :-1].split(_TILE), ids[0, 1:].split(_TILE), strict=True):
        nll.append(torch.nn.functional.cross_entropy(model.lm_head(x), targets, reduction="none"))
    return (
        model.lm_head(hidden[0, picked]).double().numpy(),
        torch.cat(nll).double().numpy(),
    )


def _greedy(
    lm: Decoder, spec: rope.Specs, model: Any, tokens: np.ndarray, train_length: int, new_tokens: int
) -> dict[str, Any]:
    """Greedy output of both after the same prompt; how far apart our two best logits come on the way."""
    import torch
    import transformers

    new_tokens = min(new_tokens, train_length // 2)
    prompt = tokens[: train_length - new_tokens]
    model.generation_config.eos_token_id = None
    settings = transformers.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    ids = torch.as_tensor(prompt, dtype=torch.long)[None]
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0].numpy()
    freqs = rope.frequencies(spec, length=train_length)
    ours = generate(lm, [prompt], freqs, max_new_tokens=new_tokens).tokens[0]
    differs = np.flatnonzero(ours != theirs[len(prompt) :])
    before = np.arange(len(prompt) - 1, len(theirs) - 1)
    best = np.sort(_logits(lm, theirs.astype(np.int32), freqs, before), axis=1)
    return {
        "prompt": len(prompt),
        "tokens": len(ours),
        "identical": not differs.size,
        "first_difference": int(differs[0]) if differs.size else None,
        "smallest_margin": float((best[:, -1] - best[:, -2]).min()),
    }


def injected(exact: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "torch.nn.Module":
    """Our cosines and sines in the place of transformers' rotary module."""
    import torch

    tables = {
        name: tuple(torch.as_tensor(np.concatenate([x, x], axis=-1))[None] for x in both)
        for name, both in exact.items()
    }

    class Injected(torch.nn.Module):
        def forward(
            self, x: object, position_ids: object, layer_type: str | None = None
        ) -> tuple[torch.Tensor, ...]:
            return next(iter(tables.values())) if layer_type is None else tables[layer_type]

    return Injected()
