"""Attention and the chunked loss beside PyTorch: time, memory, and first of all the same numbers.

    .venv/bin/python benchmarks/attention.py          # on this CPU, about three minutes on two cores
    .venv/bin/python benchmarks/attention.py --gpu    # cuDNN, block pairs and XLA in bfloat16, as TFLOP/s

On CPU, forward and backward in float32, causal, against PyTorch's fused scaled_dot_product_attention:
bfloat16 too where that is its faster way: targets at T = 4096 (4 heads of 64) are 1.25 times its float32
time, and a quarter of the XLA path's; at T = 16,384 under 160 MiB of temporaries, at most 2.2 times those
of half the length. Then linear_cross_entropy beside PyTorch's linear and cross_entropy, and its temporaries
as the vocabulary grows.

Medians of interleaved repeats in one process, compilation apart; ratios are taken round by round. Writes
results/speed/attention_<processor>.json (results/attention_gpu.json); exits with 1 when a target is missed.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs its part of the card

import jax
import jax.numpy as jnp
import numpy as np
from beside import MIB, RESULTS, THREADS, against_best, interleaved, machine, medians, ratio, write

from resonance_jax.files import write_json
from resonance_jax.model import linear_cross_entropy
from resonance_jax.model.kernel_choice import attention


def same(got, wanted, tolerance):
    """Raise unless every array is another's to `tolerance`, norm-wise."""
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        if not error <= tolerance:
            raise AssertionError(f"result {number} is off by {error:.1e} of its norm (at most {tolerance}).")


def attention_inputs(B, T, N, K, H, dtype):
    """q, k, v and the output's cotangent, as numpy and in float32."""
    rng = np.random.default_rng(0)
    shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)]
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def with_gradients(function):
    """(inputs, cotangent) -> [output, gradients ...]."""

    def run(*given):
        out, vjp = jax.vjp(function, *given[:-1])
        return [out, *vjp(given[-1])]

    return jax.jit(run)


def torch_attention(given, device):
    """A function that runs PyTorch's SDPA forward and backward and returns [output, dq, dk, dv]."""
    import torch

    dtype = getattr(torch, given[0].dtype.name)
    heads_first = [
        torch.tensor(np.asarray(x, np.float32).swapaxes(1, 2), device=device).to(dtype).contiguous()
        for x in given
    ]
    q, k, v = (x.requires_grad_() for x in heads_first[:3])
    grouped = q.shape[1] != k.shape[1]

    def run():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        results = [out, *torch.autograd.grad(out, (q, k, v), heads_first[3])]
        if device == "cuda":
            torch.cuda.synchronize()
        return results

    numbers = [x.detach().float().cpu().numpy().swapaxes(1, 2) for x in run()]
    return run, numbers


def attention_on_cpu(shape, kernels, repeats):
    """Each kernel's time beside PyTorch's, forward and backward, once the results are the same."""
    given = attention_inputs(*shape, "float32")
    opponent, wanted = torch_attention(given, "cpu")
    half, _ = torch_attention([x.astype("bfloat16") for x in given], "cpu")
    contestants = {"torch": opponent, "torch bfloat16": half}
    for kernel in kernels:
        run = with_gradients(lambda *x, kernel=kernel: attention(*x, kernel=kernel)).lower(*given).compile()
        same(run(*given), wanted, 1e-5)
        contestants[kernel] = lambda run=run: jax.block_until_ready(run(*given))
    seconds = interleaved(contestants, repeats)
    result = {
        "shape": dict(zip("BTNKH", shape, strict=True)),
        "repeats": repeats,
        "milliseconds": {name: 1e3 * value for name, value in medians(seconds).items()},
        "ratio_to_torch": {kernel: ratio(seconds, kernel, "torch") for kernel in kernels},
    }
    result["best"] = against_best(seconds, "block_pairs", ("torch", "torch bfloat16"))
    if "xla" in kernels:
        result["xla_to_block_pairs"] = ratio(seconds, "xla", "block_pairs")
    return result


def attention_memory(lengths):
    """What the gradient of block pairs costs as T grows, 4 heads of 64: it is compiled but not run."""
    rows = []
    for T in lengths:
        given = [jax.ShapeDtypeStruct((1, T, 4, 64), jnp.float32)] * 4
        start = time.perf_counter()
        compiled = with_gradients(lambda *x: attention(*x, kernel="block_pairs")).lower(*given).compile()
        seconds = time.perf_counter() - start
        temporaries = compiled.memory_analysis().temp_size_in_bytes / MIB
        rows.append({"T": T, "temporaries_mib": temporaries, "trace_and_compile_seconds": seconds})
    return rows


def loss_beside_torch(M, D, V, repeats):
    """linear_cross_entropy's time beside PyTorch's, forward and backward, once the results are the same."""
    import torch

    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((M, D), np.float32)
    head = rng.standard_normal((D, V), np.float32) / D**0.5
    targets = rng.integers(0, V, M)
    theirs = [torch.tensor(x, requires_grad=True) for x in (hidden, head)]
    wanted_targets = torch.tensor(targets)

    def opponent():
        nll = torch.nn.functional.cross_entropy(theirs[0] @ theirs[1], wanted_targets, reduction="none")
        return [nll, *torch.autograd.grad(nll.mean(), theirs)]

    given = [jnp.asarray(x) for x in (hidden, head, np.full(M, 1 / M, np.float32))]
    loss = lambda hidden, head: linear_cross_entropy(hidden, head, jnp.asarray(targets, jnp.int32))
    run = with_gradients(loss).lower(*given).compile()
    same(run(*given), [x.detach().numpy() for x in opponent()], 1e-5)
    compiled = torch.compile(opponent)
    contestants = {
        "torch": opponent,
        "torch.compile": compiled,
        "chunked": lambda: jax.block_until_ready(run(*given)),
    }
    seconds = interleaved(contestants, repeats)
    return {
        "shape": {"M": M, "D": D, "V": V},
        "repeats": repeats,
        "milliseconds": {name: 1e3 * value for name, value in medians(seconds).items()},
        "best": against_best(seconds, "chunked", ("torch", "torch.compile")),
    }


def loss_memory(M, D, vocabularies):
    rows = []
    for V in vocabularies:
        given = [jax.ShapeDtypeStruct(s, t) for s, t in (((M, D), "f4"), ((D, V), "f4"), ((M,), "i4"))]
        gradient = jax.value_and_grad(lambda *x: linear_cross_entropy(*x).mean(), argnums=(0, 1))
        memory = jax.jit(gradient).lower(*given).compile().memory_analysis()
        rows.append({"V": V, "M": M, "D": D, "temporaries_mib": memory.temp_size_in_bytes / MIB})
    return rows


def teraflops(B, T, N, H, seconds):
    """Causal attention: 2 products of T x T / 2 x H a head forward, 5 backward."""
    return 7 * 2 * B * N * T * T / 2 * H / seconds / 1e12


def attention_on_gpu(lengths, repeats, tokens=32_768, N=16, H=128):
    """TFLOP/s of every kernel in bfloat16 at `tokens` tokens a batch; what cannot run says why."""
    rows = []
    for T in lengths:
        B = max(1, tokens // T)
        given = attention_inputs(B, T, N, N, H, jnp.bfloat16)
        contestants, skipped, wanted = {}, {}, None
        for kernel in ("block_pairs", "cudnn", "xla"):
            try:
                run = with_gradients(lambda *x, kernel=kernel: attention(*x, kernel=kernel))
                run = run.lower(*given).compile()
                got = [np.asarray(x, np.float32) for x in run(*given)]
            except (ValueError, jax.errors.JaxRuntimeError) as refusal:  # it cannot, or not enough memory
                skipped[kernel] = str(refusal).splitlines()[0]
                continue
            wanted = got if wanted is None else wanted
            same(got, wanted, 2e-2)
            contestants[kernel] = lambda run=run, given=given: jax.block_until_ready(run(*given))
        try:
            import torch

            if not torch.cuda.is_available():
                raise ImportError("this torch sees no CUDA device")
            contestants["torch"], theirs = torch_attention(given, "cuda")
            same(theirs, wanted, 2e-2)
        except ImportError as missing:
            skipped["torch"] = str(missing)
        seconds = medians(interleaved(contestants, repeats))
        speed = {name: teraflops(B, T, N, H, value) for name, value in seconds.items()}
        rows.append({"B": B, "T": T, "N": N, "H": H, "teraflops_per_second": speed, "skipped": skipped})
        print(f"T = {T:>6,} x {B}: " + ", ".join(f"{name} {value:.3g}" for name, value in speed.items()))
        for name, why in skipped.items():
            print(f"    {name} left out: {why}")
    return rows


def on_cpu() -> tuple[dict, list[str]]:
    """All figures of the CPU, and the targets that were missed."""
    import torch

    torch.set_num_threads(THREADS)
    attentions = [attention_on_cpu((1, 4096, 4, 4, 64), ("block_pairs", "xla"), repeats=7)]
    for shape in ((1, 4096, 8, 2, 64), (8, 1024, 4, 4, 64), (2, 2048, 8, 8, 128), (8, 512, 4, 4, 64)):
        attentions.append(attention_on_cpu(shape, ("block_pairs",), repeats=9))
    memory = attention_memory((4096, 8192, 16_384, 32_768))
    losses = [loss_beside_torch(2048, 256, 512, 15), loss_beside_torch(2048, 256, 32_000, 5)]
    result = {"attention": attentions, "attention_memory": memory, "loss": losses}
    result["loss_memory"] = loss_memory(8192, 256, (1000, 32_000, 128_000))
    for row in attentions:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in row["ratio_to_torch"].items())
        shape = ", ".join(f"{letter} {size:,}" for letter, size in row["shape"].items())
        print(f"attention, {shape}: {figures} times PyTorch's {row['milliseconds']['torch']:.0f} ms")
    print(f"    XLA at T = 4096: {attentions[0]['xla_to_block_pairs']:.1f} times block pairs")
    for row in memory:
        print(
            f"gradient at T = {row['T']:,}: {row['temporaries_mib']:.0f} MiB of temporaries, "
            f"compiled in {row['trace_and_compile_seconds']:.1f} s"
        )
    for row in losses:
        milliseconds, best = row["milliseconds"]["torch"], row["best"]
        print(
            f"loss, {row['shape']}: {best['ratio']:.2f} times {best['opponent']} (eager {milliseconds:.0f})"
        )
    for row in result["loss_memory"]:
        print(f"loss at V = {row['V']:,}: {row['temporaries_mib']:.0f} MiB of temporaries")
    sixteen = memory[2]["temporaries_mib"]
    small, large = result["loss_memory"][0]["temporaries_mib"], result["loss_memory"][-1]["temporaries_mib"]
    targets = {
        "at most 1.25 times PyTorch": attentions[0]["ratio_to_torch"]["block_pairs"] <= 1.25,
        "4 times faster than XLA": attentions[0]["xla_to_block_pairs"] >= 4,
        "under 160 MiB at T = 16,384": sixteen < 160,
        "2.2 times the memory for twice the length": sixteen <= 2.2 * memory[1]["temporaries_mib"],
        "the loss's memory within a tenth": large <= 1.1 * small + 256 * 128_000 * 4 / MIB,
    }
    return result, [name for name, met in targets.items() if not met]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="the kernels of a GPU in bfloat16, as TFLOP/s")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768])
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens a batch with --gpu")
    parser.add_argument("--repeats", type=int, default=10, help="rounds with --gpu")
    parser.add_argument("--out", type=Path, help="default results/speed, results/attention_gpu.json")
    arguments = parser.parse_args()
    if arguments.gpu:
        rows = attention_on_gpu(arguments.lengths, arguments.repeats, tokens=arguments.tokens)
        result, missed = {"attention": rows}, []
    else:
        result, missed = on_cpu()
    if arguments.gpu or arguments.out:
        path = arguments.out or RESULTS / "attention_gpu.json"
        write_json(path, {**machine(), **result})
        print(f"written to {path}")
    else:
        write("attention", {**machine(), **result})
    if missed:
        print("missed: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
