"""Generation beside transformers with PyTorch and its own cache: the same weights, prompts and tokens.

    .venv/bin/python benchmarks/generate.py

`llama-50m` with random weights: prompts of 4,096 tokens and 64 new ones, greedy, batch 1 and 8, float32.
transformers runs `generate` with SDPA and two threads, and makes logits of the last prompt token only: with
its default cache, and with its static cache and a compiled decoding step. The tokens are equal before
anything is timed. Compile time is apart. Target: at least as fast as its faster way at batch 8.

Writes results/speed/generate_<processor>.json; exits with 1 when the target is missed. About ten minutes on
two cores.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from beside import against_best, interleaved, machine, medians, ratio, write
from opponents import loaded, static_cache

from resonance_jax import generate, interop, model, rope

CONFIG = model.PRESETS["llama-50m"]
PROMPT, NEW = 4096, 64


def decoder():
    """Random weights whose likeliest token stands out, or the last digit would choose it."""
    lm = model.Decoder(CONFIG, jax.random.key(0))
    params = lm.params
    return lm.replace_params(params | {"head": params["head"] * 20, "embed": params["embed"] * 20})


def transformers_twin(lm, spec):
    with tempfile.TemporaryDirectory() as folder:
        interop.save_hf(lm, Path(folder) / "m", rope=spec)
        return loaded(Path(folder) / "m")


def beside_transformers(lm, theirs, freqs, batch, repeats):
    import torch

    prompts = np.random.default_rng(batch).integers(0, CONFIG.vocab_size, (batch, PROMPT))

    def ours(new=NEW):
        return np.stack(generate.generate(lm, list(prompts), freqs, max_new_tokens=new).tokens)

    @torch.no_grad()
    def opponent(new=NEW, **cache):
        options = dict(min_new_tokens=new, max_new_tokens=new, do_sample=False, pad_token_id=0)
        ids = torch.as_tensor(prompts)
        mask = torch.ones_like(ids)
        return theirs.generate(ids, attention_mask=mask, **options, **cache)[:, PROMPT:].numpy()

    static = static_cache()
    np.testing.assert_array_equal(ours(), opponent())
    np.testing.assert_array_equal(ours(), opponent(**static))
    opponents = {"default cache": opponent, "static cache, compiled": lambda: opponent(**static)}
    contestants = {"ours": ours, **opponents}
    contestants |= {"ours, one token": lambda: ours(1), "default cache, one token": lambda: opponent(1)}
    contestants |= {"static cache, compiled, one token": lambda: opponent(1, **static)}
    seconds = interleaved(contestants, repeats)
    decoding = {
        name: [a - b for a, b in zip(seconds[name], seconds[f"{name}, one token"], strict=True)]
        for name in ("ours", *opponents)
    }
    return {
        "batch": batch,
        "seconds": medians(seconds),
        "best": against_best(seconds, "ours", list(opponents)),
        "prefill_ratio": ratio(seconds, "ours, one token", "default cache, one token"),
        "decode_best": against_best(decoding, "ours", list(opponents)),
        "tokens_equal": batch * NEW,
    }


def main() -> int:
    lm = decoder()
    spec = rope.RopeSpec("yarn", head_dim=CONFIG.head_dim, scale=4.0, train_length=2048)
    freqs = rope.frequencies(spec)
    theirs = transformers_twin(lm, spec)
    rows = [beside_transformers(lm, theirs, freqs, batch, repeats) for batch, repeats in ((1, 5), (8, 2))]
    write("generate", {**machine(), "prompt": PROMPT, "new": NEW, "batches": rows})
    for row in rows:
        print(
            f"batch {row['batch']}: {row['best']['ratio']:.2f} times {row['best']['opponent']} "
            f"(prefill {row['prefill_ratio']:.2f} of the default's, decoding {row['decode_best']})"
        )
    if rows[-1]["best"]["ratio"] > 1:
        print("missed: as fast as PyTorch at batch 8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
