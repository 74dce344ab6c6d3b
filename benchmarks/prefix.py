"""What sharing a document's prefill saves when many questions are asked about it (generate.share).

    .venv/bin/python benchmarks/prefix.py FOLDER [--tasks tpo …] [--context 8k] [--questions 8]

FOLDER holds L-Eval's jsonl files. Counted for every question of the tasks: the prompt tokens that go through
SmolLM2-135M with the prefix shared and without. Timed on the first document of each task that has as many
questions: its questions asked both ways, in this order, after a warm-up that compiles; answers are compared
token by token, and where they part, the two likeliest logits there are told. float32, greedy.

Writes results/speed/prefix_<processor>.json; exits with 1 when it saves less than 8x the tokens or 4x the
time.
"""

import argparse
import itertools
import sys
import time

import numpy as np
from beside import machine, write

from resonance_jax import generate, interop, rope
from resonance_jax.data import leval
from resonance_jax.evaluate import leval_asking
from resonance_jax.generate.shared_prefix import common_length

NEW = 16


def documents(prompts):
    """The prompts of each document, as token ids."""
    return [
        [prompt.tokens for prompt in some] for _, some in itertools.groupby(prompts, lambda p: p.cut.text)
    ]


def counted(groups):
    """Prompt tokens through the decoder: each question alone, and with what a document's share once."""
    alone = sum(len(tokens) for group in groups for tokens in group)
    once = 0
    for group in groups:
        shared = common_length(group) if len(group) > 1 else 0
        once += shared + sum(len(tokens) - shared for tokens in group)
    return {"questions": sum(map(len, groups)), "alone": alone, "shared": once, "ratio": alone / once}


def timed(lm, freqs, group):
    """Seconds of both ways of asking a document's questions, and where the answers part."""
    options = {"max_new_tokens": NEW}

    def together():
        shared = generate.share(lm, group, freqs)
        return generate.generate(lm, group, freqs, shared=shared, **options).tokens

    def alone():
        return [generate.generate(lm, [tokens], freqs, **options).tokens[0] for tokens in group]

    together()
    generate.generate(lm, group[:1], freqs, **options)
    seconds, answers = {}, {}
    for name, ask in (("shared", together), ("alone", alone)):
        began = time.perf_counter()
        answers[name] = ask()
        seconds[name] = time.perf_counter() - began
    flips = []
    for i, (a, b) in enumerate(zip(answers["shared"], answers["alone"], strict=True)):
        same = min(len(a), len(b))
        parts = np.flatnonzero(a[:same] != b[:same])
        if len(parts):
            at = int(parts[0])
            tokens = np.concatenate([group[i], b[:at]]).astype(np.int32)
            logits = np.sort(np.asarray(lm(tokens[None], freqs))[0, -1])
            flips.append({"question": i, "token": at, "top two apart": float(logits[-1] - logits[-2])})
    return {
        "prompt_tokens": int(np.mean([len(tokens) for tokens in group])),
        "questions": len(group),
        "seconds": seconds,
        "speedup": seconds["alone"] / seconds["shared"],
        "flips": flips,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--tasks", nargs="+", default=["coursera", "gsm100", "quality", "tpo", "sci_fi"])
    parser.add_argument("--timed", nargs="*", default=["tpo"])
    parser.add_argument("--context", default="8k")
    parser.add_argument("--questions", type=int, default=8)
    asked = parser.parse_args()
    checkpoint = interop.open_checkpoint("smollm2-135m")
    tokenizer, lm = checkpoint.tokenizer(), interop.load_hf(checkpoint.path)
    budget = leval.document_budget(asked.context)
    result = {**machine(), "context": asked.context, "new_tokens": NEW, "tokens": {}, "time": {}}
    every = []
    for task in asked.tasks:
        questions, _ = leval.read(asked.folder, task)
        arguments = (questions, tokenizer, budget, lm.config.vocab_size, lambda *_: None)
        groups = documents(leval_asking.prompts(*arguments, chat=True))
        every += groups
        result["tokens"][task] = counted(groups)
        print(task, result["tokens"][task], flush=True)
        if task in asked.timed:
            longest = max(groups, key=lambda g: (len(g) >= asked.questions, len(g[0])))[: asked.questions]
            table = rope.frequencies(checkpoint.rope, length=max(map(len, longest)) + NEW)
            result["time"][task] = timed(lm, table, longest)
            print(result["time"][task], flush=True)
    result["tokens"]["all"] = counted(every)
    print(result["tokens"]["all"])
    slowest = min(one["speedup"] for one in result["time"].values())
    result["best"] = {"ratio": 1 / slowest, "opponent": "one by one"}
    write("prefix", result)
    fast = all(one["speedup"] >= 4 for one in result["time"].values())
    sys.exit(0 if fast and result["tokens"]["all"]["ratio"] >= 8 else 1)


if __name__ == "__main__":
    main()
