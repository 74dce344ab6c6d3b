"""Decoding with SmolLM2-135M after 4,096 tokens beside transformers: its default cache, and its static one.

    .venv/bin/python benchmarks/decode.py [--batches 1 8] [--repeats 5]

The packaged GGUF file, in transformers as a directory of the same dense weights (the file itself it keeps
packed); float32, greedy, two threads. The opponents are transformers' `generate` with its default cache, and
with the static cache and the forward that it compiles for it (left out with a word where there is no C++
compiler).

Each reads a passage of 4,096 tokens once; every row of a batch holds it, and goes on with a token of its own.
Timed is what follows: 64 tokens, the program that `generate` runs against theirs, caches set back between.
The answers are compared first, and where they part, that is told.

What bounds it: each token reads every weight once, and the keys and values of its context. The bytes per
second of a product with one row (a matrix as large as the weights) are measured in the same run; the share
of that bound which decoding comes to is printed beside the figure. Targets: batch 1: 1.3 times as fast as
the default cache, not slower than the static one, 70 % of the byte bound; batch 8: 2 times the default.

Writes results/speed/decode_<processor>.json; exits with 1 when a target is missed.
"""

import argparse
import dataclasses
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from beside import against_best, interleaved, machine, medians, ratio, write
from opponents import compiled_decoding, loaded
from smollm2 import exported, text

from resonance_jax import generate, interop, rope
from resonance_jax.generate.decode import CHUNK, _continue

NAME, PROMPT, NEW = "smollm2-135m", 4096, CHUNK


def passage(batch):
    """The tokens [PROMPT] that all rows begin with, and the one [batch] with which each goes on."""
    ids = text(max(PROMPT, 997 * batch))[0]
    return ids[:PROMPT], ids[997 * np.arange(batch)]


class Ours:
    """The cache after the passage, and the program of `generate` that goes on from it."""

    def __init__(self, lm, freqs, ids, last):
        self.lm, self.last, rows = lm, last, len(last)
        room = generate.bucket(PROMPT + NEW)
        start = jax.jit(generate.prefill, static_argnums=(0, 5))
        _, one = start(lm.config, lm.params, ids[None], np.array([PROMPT]), freqs, room)
        repeat = lambda x: jnp.repeat(x, rows, axis=1)
        lengths = jnp.repeat(one.lengths, rows)
        self.cache = dataclasses.replace(
            one, keys=repeat(one.keys), values=repeat(one.values), lengths=lengths
        )

    def given(self):
        """A copy of the cache: the program writes in it."""
        return jax.block_until_ready(jax.tree.map(jnp.copy, self.cache))

    def run(self, cache):
        done, none = np.zeros(len(self.last), bool), np.zeros(0, np.int32)
        state = (cache, None, self.last, done, none, np.int32(0), np.int32(NEW), None)
        return np.asarray(_continue(self.lm.config, self.lm.params, *state)[2])


class Theirs:
    """transformers' cache after the passage, and its `generate`. compiled: with the static cache."""

    def __init__(self, lm, ids, last, compiled):
        import torch
        from transformers import DynamicCache, StaticCache

        self.lm, rows = lm, len(last)
        ids = torch.as_tensor(ids, dtype=torch.long)
        with torch.no_grad():
            self.cache = lm(ids[None], cache=DynamicCache(config=lm.config), use_cache=True).cache
        self.cache.batch_repeat_interleave(rows)
        if compiled:
            static = StaticCache(config=lm.config, max_cache_len=PROMPT + NEW)
            for number, layer in enumerate(self.cache.layers):
                static.update(layer.keys, layer.values, number)
            self.cache = static
        self.ids = torch.cat([ids.expand(rows, -1), torch.as_tensor(last)[:, None].long()], dim=1)
        self.options = {"compile_config": compiled_decoding()} if compiled else {}

    def given(self):
        """The cache with the passage alone in it."""
        self.cache.crop(PROMPT - int(self.cache.get_seq_length()))
        return self.cache

    def run(self, cache):
        import torch

        fixed = dict(do_sample=False, pad_token_id=0, eos_token_id=None)
        fixed |= dict(min_new_tokens=NEW, max_new_tokens=NEW, attention_mask=torch.ones_like(self.ids))
        with torch.no_grad():
            said = self.lm.generate(self.ids, cache=cache, **fixed, **self.options)
        return said[:, PROMPT + 1 :].numpy()


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


def compared(lm, freqs, transformers_lm, batch, repeats):
    """One batch: seconds, ratios and the share of the byte bound."""
    ids, last = passage(batch)
    able, left_out, parted = {"ours": Ours(lm, freqs, ids, last)}, {}, {}
    answers = able["ours"].run(able["ours"].given())
    for name, compiled in (("default cache", False), ("static cache, compiled", True)):
        try:
            opponent = Theirs(transformers_lm, ids, last, compiled)
            parted[name] = flips(answers, opponent.run(opponent.given()))
            able[name] = opponent
        except Exception as error:  # whatever PyTorch's compiler raises where there is no C++ compiler
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            warnings.warn(f"{name} is left out: {left_out[name]}", stacklevel=1)
    contestants = {name: one.run for name, one in able.items()}
    seconds = interleaved(contestants, repeats, given={name: one.given for name, one in able.items()})
    opponents = [name for name in able if name != "ours"]
    a_step = medians(seconds)["ours"] / NEW
    size = bytes_a_step(lm, batch)
    rate = bytes_per_second(sum(x.nbytes for x in jax.tree.leaves(lm.params)))
    return {
        "batch": batch,
        "rounds": repeats,
        "milliseconds a token": {name: 1e3 * s / NEW for name, s in medians(seconds).items()},
        "best": against_best(seconds, "ours", opponents),
        "times as fast as": {name: 1 / ratio(seconds, "ours", name) for name in opponents},
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
        theirs = loaded(exported(lm, Path(scratch) / "hf"))
    rows = []
    for batch in asked.batches:
        repeats = asked.repeats if batch == 1 else max(2, asked.repeats // 2)  # half a minute each
        rows.append(compared(lm, freqs, theirs, batch, repeats))
        print(rows[-1], flush=True)
    write("decode", {**machine(), "prompt": PROMPT, "new": NEW, "batches": rows})
    return 0 if all(map(reached, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
