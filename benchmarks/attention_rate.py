"""Block-pair attention beside the rate of this machine's float32 products, forward and backward.

    .venv/bin/python benchmarks/attention_rate.py [--lengths 4096 8192 16384 32768]

Causal attention is products over the lower half of T x T, and cannot be faster than those products alone at
the rate of a large square product, which is measured in the same rounds. Heads: SmolLM2's 9 over 3, and 9
plain ones. Target: within 1.5 times the time that the products
take at the large product's rate; grouped heads not slower per FLOP than plain ones (5 % is noise).

Writes results/speed/attention-rate_<processor>.json; exits with 1 when a target is missed.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from beside import interleaved, machine, medians, write

from resonance_jax.model.kernel_choice import attention

HEAD_DIM, SQUARE = 64, 2048
HEADS = {"9 over 3": (9, 3), "9": (9, 9)}


def flops(length, heads, products):
    """Of causal attention: `products` products of T x T / 2 x H a head."""
    return products * 2 * heads * length * length / 2 * HEAD_DIM


def runs_of(length, heads, kv_heads):
    """Compiled: the forward, and the forward with its backward."""
    rng = np.random.default_rng(0)
    shapes = [(1, length, n, HEAD_DIM) for n in (heads, kv_heads, kv_heads)]
    given = [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]
    attend = lambda q, k, v: attention(q, k, v, kernel="block_pairs")
    forward = jax.jit(attend)
    gradient = jax.jit(jax.grad(lambda *x: attend(*x).sum(), (0, 1, 2)))
    return {
        "forward": lambda: jax.block_until_ready(forward(*given)),
        "forward and backward": lambda: jax.block_until_ready(gradient(*given)),
    }


def measured(length, repeats):
    """One row a kind of heads: seconds, and their multiple of what the products alone would take."""
    square = jnp.ones((SQUARE, SQUARE), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    contestants = {"product": lambda: jax.block_until_ready(multiply(square))}
    for name, heads in HEADS.items():
        contestants |= {(name, what): run for what, run in runs_of(length, *heads).items()}
    seconds = medians(interleaved(contestants, repeats))
    rate = 2 * SQUARE**3 / seconds["product"]
    return [
        {
            "tokens": length,
            "heads": name,
            "what": what,
            "seconds": seconds[name, what],
            "product_gflops": rate / 1e9,
            "times_the_products": seconds[name, what] * rate / flops(length, heads, products),
        }
        for name, (heads, _) in HEADS.items()
        for what, products in (("forward", 2), ("forward and backward", 7))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    result, rows = machine(), []
    for length in asked.lengths:
        rows += measured(length, asked.repeats)
        for row in rows[-4:]:
            print(f"T = {length:>6,}, {row['heads']:>8} heads, {row['what']}: ", end="")
            print(f"{row['seconds']:.2f} s, {row['times_the_products']:.2f} times its products", flush=True)
        write("attention-rate", {**result, "rows": rows})
    grouped, plain = ([r["times_the_products"] for r in rows if r["heads"] == name] for name in HEADS)
    fair = all(a <= 1.05 * b for a, b in zip(grouped, plain, strict=True))
    return 0 if fair and max(grouped + plain) <= 1.5 else 1


if __name__ == "__main__":
    sys.exit(main())
