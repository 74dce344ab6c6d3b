"""Decoding with SmolLM2-135M after 4,096 tokens beside transformers: its default cache, and its static one.

    .venv/bin/python benchmarks/decode.py [--batches 1 8] [--repeats 5]

The packaged GGUF file, in transformers as a directory of the same dense weights (the file itself it keeps
packed); float32, greedy, two threads. The opponents are transformers' `generate` with
its default cache, and with the static cache and the forward that it compiles for it (compiling apart; left
out with a word where this machine cannot). Prompts are passages of 4,096 tokens, 64 tokens follow each; the
answers are compared first, and where they part, that is told. Decoding is the time of 64 tokens less that of
one, in the same round.

What bounds it: each token reads every weight once, and the keys and values of its context. The bytes per
second of a product with one row (a matrix as large as the weights) are measured in the same run; the share
of that bound which decoding comes to is printed beside the figure. Targets: batch 1: 1.3 times as fast as
the default cache, not slower than the static one, 70 % of the byte bound; batch 8: 2 times the default.

Writes results/speed/decode_<processor>.json; exits with 1 when a target is missed.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from beside import against_best, interleaved, machine, medians, ratio, write
from opponents import loaded, static_cache
from smollm2 import exported

from resonance_jax import data, generate, interop, rope

NAME, PROMPT, NEW = "smollm2-135m", 4096, 64


def prompts(checkpoint, batch):
    """Rows of passages, each beginning elsewhere: they share no prefix."""
    tokenizer = checkpoint.tokenizer()
    ids = np.concatenate([tokenizer.encode(document.text) for document in data.corpus("passages")])
    return np.stack([np.resize(np.roll(ids, -997 * row), PROMPT) for row in range(batch)]).astype(np.int32)


def opponents(folder):
    """{name: generate(ids, new) -> tokens} of transformers."""
    import torch

    lm = loaded(folder)
    fixed = dict(do_sample=False, pad_token_id=0, eos_token_id=None)

    @torch.no_grad()
    def run(ids, new, **cache):
        ids = torch.as_tensor(ids, dtype=torch.long)
        mask = torch.ones_like(ids)
        options = dict(min_new_tokens=new, max_new_tokens=new, **fixed, **cache)
        return lm.generate(ids, attention_mask=mask, **options)[:, PROMPT:].numpy()

    static = static_cache()
    return {
        "default cache": run,
        "static cache, compiled": lambda ids, new: run(ids, new, **static),
    }


def bytes_per_second(size):
    """How fast one row times a float32 matrix of so many bytes reads it."""
    rows = 4096
    matrix = jnp.ones((rows, size // (4 * rows)), jnp.float32)
    row = jnp.ones((1, rows), jnp.float32)
    product = jax.jit(lambda row, matrix: row @ matrix)
    seconds = medians(interleaved({"product": lambda: product(row, matrix).block_until_ready()}, 9))
    return matrix.nbytes / seconds["product"]


def bytes_a_step(lm, batch):
    """Weights, which each step reads once, and the keys and values of every row's context."""
    config = lm.config
    embed = 0 if config.tie_embeddings else lm.params["embed"].nbytes  # of it a step reads a row
    weights = sum(x.nbytes for x in jax.tree.leaves(lm.params)) - embed
    cache = 2 * 4 * batch * config.n_layers * (PROMPT + NEW // 2) * config.n_kv_heads * config.head_dim
    return weights + cache


def flips(ours, theirs):
    """(row, token) of where each answer first parts from the other."""
    apart = [np.flatnonzero(a != b) for a, b in zip(ours, theirs, strict=True)]
    return [(row, int(where[0])) for row, where in enumerate(apart) if len(where)]


def compared(lm, freqs, others, ids, repeats):
    """One batch: seconds, ratios and the share of the byte bound."""

    def ours(new=NEW):
        return np.stack(generate.generate(lm, list(ids), freqs, max_new_tokens=new).tokens)

    answers, able, left_out = ours(), {}, {}
    parted = {}
    for name, opponent in others.items():
        try:
            parted[name] = flips(answers, opponent(ids, NEW))
            able[name] = opponent
        except Exception as error:  # whatever PyTorch's compiler raises where there is no C++ compiler
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            warnings.warn(f"{name} is left out: {left_out[name]}", stacklevel=1)
    contestants = {"ours": ours, "ours, one token": lambda: ours(1)}
    for name, run in able.items():
        contestants[name] = lambda run=run: run(ids, NEW)
        contestants[f"{name}, one token"] = lambda run=run: run(ids, 1)
    seconds = interleaved(contestants, repeats)
    decoding = {
        name: [a - b for a, b in zip(seconds[name], seconds[f"{name}, one token"], strict=True)]
        for name in ("ours", *able)
    }
    a_step = medians(decoding)["ours"] / (NEW - 1)
    size = bytes_a_step(lm, len(ids))
    rate = bytes_per_second(sum(x.nbytes for x in jax.tree.leaves(lm.params)))
    return {
        "batch": len(ids),
        "milliseconds a token": {name: 1e3 * s / (NEW - 1) for name, s in medians(decoding).items()},
        "best": against_best(decoding, "ours", list(able)),
        "times as fast as": {name: 1 / ratio(decoding, "ours", name) for name in able},
        "seconds with the prompt": medians(seconds),
        "answers part at (row, token)": parted,
        "left out": left_out,
        "bytes a step": size,
        "bytes a second": size / a_step,
        "bytes a second of a product with one row": rate,
        "share of the byte bound": size / a_step / rate,
    }


def reached(row):
    """Whether the targets of a batch are reached; one that could not be measured is not."""
    fast = row["times as fast as"]
    if row["batch"] == 1:
        static = fast.get("static cache, compiled", 0.0)
        return fast["default cache"] >= 1.3 and static >= 1.0 and row["share of the byte bound"] >= 0.7
    return fast["default cache"] >= 2.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    checkpoint = interop.open_checkpoint(NAME)
    lm = interop.load_hf(checkpoint.path)
    freqs = rope.frequencies(checkpoint.rope)
    with tempfile.TemporaryDirectory() as scratch:
        others = opponents(exported(lm, Path(scratch) / "hf"))
    rows = []
    for batch in asked.batches:
        repeats = asked.repeats if batch == 1 else max(2, asked.repeats // 2)
        rows.append(compared(lm, freqs, others, prompts(checkpoint, batch), repeats))
        print(rows[-1], flush=True)
    write("decode", {**machine(), "prompt": PROMPT, "new": NEW, "batches": rows})
    return 0 if all(map(reached, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
