"""Exact cosines and sines against PyTorch's float32 ones, and their share of a forward pass.

    .venv/bin/python benchmarks/rope.py

1. A table of 32,768 positions x 64 pairs: rope.cos_sin, jitted (exact to 1e-6 at any position), against
   torch.outer, cos, sin in float32, eager and compiled (wrong by 2e-3 at the end of it). Target: at most the
   faster one's time.
2. cos_sin within a jitted 4,096-token forward of a 50M-parameter decoder (`llama-50m`): its time alone,
   times how often the compiled program computes it (operations with and without it), as a share of the
   forward. Target: 1 %. The forward given its cos and sin is timed too; the difference is within the noise.

Medians of interleaved repeats in one process, compilation apart; ratios are taken round by round. Writes
results/speed/rope_<processor>.json. About two minutes on two cores; exits with 1 when a target is missed.
"""

import statistics
import sys
from unittest import mock

import jax
import numpy as np
import torch
from beside import THREADS, against_best, interleaved, machine, ratio, write

from resonance_jax import model, rope

POSITIONS, PAIRS = 32_768, 64
TOKENS = 4096
YARN = {"method": "yarn", "scale": 8.0, "train_length": 4096}


def table(repeats=101):
    """Milliseconds for the table of each contestant, and our ratio to PyTorch."""
    head_dim = 2 * PAIRS
    plain = rope.frequencies(rope.RopeSpec(head_dim=head_dim))
    resonant = rope.frequencies(rope.RopeSpec(head_dim=head_dim, resonance=True, **YARN))
    inv_freq, steps = torch.tensor(plain.inv_freq64, dtype=torch.float32), torch.arange(POSITIONS)
    positions, cos_sin = jax.numpy.arange(POSITIONS), jax.jit(rope.cos_sin)

    def opponent():
        angles = torch.outer(steps.float(), inv_freq)
        return torch.cos(angles), torch.sin(angles)

    compiled = torch.compile(opponent)
    opponents = ("PyTorch eager", "torch.compile")
    seconds = interleaved(
        {
            "PyTorch eager": opponent,
            "torch.compile": compiled,
            "exact": lambda: jax.block_until_ready(cos_sin(plain, positions)),
            "exact, Resonance": lambda: jax.block_until_ready(cos_sin(resonant, positions)),
        },
        repeats,
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    exact = np.cos(np.arange(POSITIONS)[:, None] * plain.inv_freq64)
    return {
        "positions": POSITIONS,
        "pairs": PAIRS,
        "repeats": repeats,
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        **{name: against_best(seconds, name, opponents) for name in ("exact", "exact, Resonance")},
        "largest_error_in_cos": {
            "PyTorch eager": float(np.abs(opponent()[0].numpy() - exact).max()),
            "exact": float(np.abs(np.asarray(cos_sin(plain, positions)[0]) - exact).max()),
        },
    }


def forward_share(repeats=7):
    """How much of a forward the phases are: their time alone, times how often the program computes them."""
    config = model.PRESETS["llama-50m"]
    lm = model.Decoder(config, key=jax.random.key(0))
    freqs = rope.frequencies(rope.RopeSpec(head_dim=config.head_dim, resonance=True, **YARN))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, TOKENS)).astype(np.int32)

    def phases(freqs):
        return rope.cos_sin(freqs, jax.numpy.arange(TOKENS))

    def forward(freqs, params):
        return model.forward(config, params, tokens, freqs)

    def given(freqs, params, cos, sin):
        with mock.patch.object(rope, "cos_sin", lambda *_: (cos, sin)):
            return model.forward(config, params, tokens, freqs)

    arguments = {"cos_sin": (freqs,), "forward": (freqs, lm.params)}
    arguments["forward given cos and sin"] = (freqs, lm.params, *jax.jit(phases)(freqs))
    programs = {
        name: jax.jit(function).lower(*arguments[name]).compile()
        for name, function in zip(arguments, (phases, forward, given), strict=True)
    }
    logits = [programs[name](*arguments[name]) for name in list(arguments)[1:]]
    runs = {
        name: lambda name=name: jax.block_until_ready(programs[name](*arguments[name])) for name in programs
    }
    seconds = interleaved(runs, repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    operations = [programs[name].cost_analysis()["flops"] for name in arguments]
    times_computed = (operations[1] - operations[2]) / operations[0]
    return {
        "parameters": lm.count_parameters(),
        "tokens": TOKENS,
        "repeats": repeats,
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        "times_computed": times_computed,
        "share_of_cos_sin": times_computed * medians["cos_sin"] / medians["forward"],
        "ratio_to_forward_given_them": ratio(seconds, "forward", "forward given cos and sin"),
        "same_logits_to_the_bit": bool(np.array_equal(*logits)),
    }


def main() -> int:
    torch.set_num_threads(THREADS)
    result = {"table": table(), "forward": forward_share(), **machine()}
    write("rope", result)
    table_, forward = result["table"], result["forward"]
    print(f"table of {POSITIONS:,} positions x {PAIRS} pairs:")
    for name, value in table_["milliseconds"].items():
        print(f"  {name:<18} {value:7.2f} ms")
    ratios = {name: table_[name]["ratio"] for name in ("exact", "exact, Resonance")}
    print(
        f"cos_sin is computed {forward['times_computed']:.2f} times in a {TOKENS:,}-token forward, "
        f"{forward['share_of_cos_sin']:.3%} of its time"
    )
    met = ratios["exact"] <= 1 and ratios["exact, Resonance"] <= 1 and forward["share_of_cos_sin"] <= 0.01
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
