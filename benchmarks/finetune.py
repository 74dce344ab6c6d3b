"""A fine-tuning step of a 50M-parameter LLaMA beside transformers with PyTorch, float32, two threads.

    .venv/bin/python benchmarks/finetune.py [--repeats 3]
    .venv/bin/python benchmarks/finetune.py long          (a step of 16,384 tokens in a fresh process)

Ours is the program that `experiments.finetune` runs on two cores: one host device a core, rows cut over
them (a single row is cut in time). The opponent is LlamaForCausalLM with SDPA, the head only where the loss
needs it, and torch's fused AdamW; eager, and with the layers' forward and backward compiled. First both
train 25 steps from the same weights: their losses must agree to 1e-4. Then a step is timed at 8 rows of 512
(target: 1.2 times PyTorch's steps a second) and at one row of 4,096 (0.8 times), in turn. In the same
rounds our step runs under Resonance YaRN's table instead of YaRN's: nothing is compiled for it, and it
takes 1.00 times the time. `long` takes one step of 16,384 tokens (target: within 6 GB).

`profile` says where the step's time goes: parts timed alone, and what the products would take at the measured
peak of a matrix product. Ratios are medians over the rounds; compilation is apart. Writes
results/speed/finetune_<processor>.json (finetune_long_…), in about seven minutes on two cores; exits with 1
when a target is missed.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from beside import THREADS, against_best, alone, interleaved, machine, medians, ratio, report_alone, write

from resonance_jax import interop, model, rope, train
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.model.sequence import attention
from resonance_jax.parallel.mesh import make_mesh, sharding
from resonance_jax.train import flops
from resonance_jax.train.batches import micro_rows, place_batch
from resonance_jax.train.run_program import RunProgram

FIFTY = model.PRESETS["llama-50m"]
OPTIMIZER = train.OptimizerConfig(lr=3e-4, warmup=0.1)
CHECKED = {"steps": 25, "rows": 4, "length": 128}
SIZES = {512: {"rows": 8, "target": 1.2}, 4096: {"rows": 1, "target": 0.8}}
SPECS = {
    name: rope.RopeSpec("yarn", head_dim=64, scale=4.0, train_length=1024, resonance=name != "ours")
    for name in ("ours", "resonance")
}


def tokens_of(step, rows, length):
    """Rows that repeat a random pattern of frequent and rare tokens: there is something to learn."""
    rng = np.random.default_rng(step)
    pattern = np.minimum(rng.zipf(1.3, (rows, 24)), FIFTY.vocab_size) - 1
    return np.tile(pattern, length // 24 + 1)[:, :length].astype(np.int32)


class Ours:
    """The compiled step and its state, on one host device a core."""

    def __init__(self, rows, length, steps=1_000_000, remat="none"):
        self.shape, self.count = (rows, length), 0
        config, devices = FIFTY.replace(remat=remat), jax.device_count()
        self.mesh = make_mesh(data=devices) if rows % devices == 0 else make_mesh(sequence=devices)
        self.micro = micro_rows(rows, length, self.mesh.shape["data"])
        self.program = RunProgram(config, train.TrainConfig(steps, OPTIMIZER, micro=self.micro), self.mesh)
        lm = model.Decoder(config, jax.random.key(0), mesh=self.mesh)
        self.state = self.program.first_state(self.program.place(lm.params, 0, donate=True)[0], 0)
        self.freqs = {name: rope.frequencies(spec) for name, spec in SPECS.items()}

    def step(self, name="ours"):
        tokens = tokens_of(self.count, *self.shape)
        batch = place_batch(lambda start, stop: {"tokens": tokens[start:stop]}, *self.shape, self.mesh)
        self.state, metrics = self.program.step(self.state, {}, batch, self.freqs[name])
        self.count += 1
        return float(metrics["loss"])


class Opponent:
    """The same weights in transformers, with torch's optimizer and schedule."""

    def __init__(self, rows, length, steps=1_000_000, compiled=False):
        import torch
        import transformers

        torch.set_num_threads(THREADS)
        self.torch, self.shape, self.count = torch, (rows, length), 0
        with tempfile.TemporaryDirectory() as folder:
            interop.save_hf(model.Decoder(FIFTY, jax.random.key(0)), Path(folder) / "m", rope=SPECS["ours"])
            self.llama = transformers.AutoModelForCausalLM.from_pretrained(
                Path(folder) / "m", dtype=torch.float32, attn_implementation="sdpa"
            ).train()
        self.layers = torch.compile(self.llama.model) if compiled else self.llama.model
        o = OPTIMIZER
        self.adamw = torch.optim.AdamW(
            self.llama.parameters(),
            lr=o.lr,
            betas=(o.beta1, o.beta2),
            eps=o.eps,
            weight_decay=o.weight_decay,
            fused=True,
        )
        warmup = round(o.warmup * steps)
        self.schedule = transformers.get_linear_schedule_with_warmup(self.adamw, warmup, steps)

    def step(self):
        tokens = self.torch.as_tensor(tokens_of(self.count, *self.shape), dtype=self.torch.long)
        hidden = self.layers(tokens, use_cache=False).last_hidden_state[:, :-1]
        logits = self.llama.lm_head(hidden.reshape(-1, FIFTY.d_model))
        loss = self.torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1))
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()
        self.adamw.step()
        self.schedule.step()
        self.count += 1
        return loss.item()


def largest_difference():
    """Of the losses of 25 steps from the same weights, and the losses at both ends."""
    c = CHECKED
    both = [kind(c["rows"], c["length"], c["steps"]) for kind in (Ours, Opponent)]
    losses = np.asarray([[one.step() for one in both] for _ in range(c["steps"])])
    return {**c, "largest_difference": float(np.abs(losses[:, 0] - losses[:, 1]).max())} | {
        "first_loss": losses[0, 0],
        "last_loss": losses[-1, 0],
    }


@contextlib.contextmanager
def nothing_compiled():
    """Raise RuntimeError if anything is compiled in the block."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    yield
    if compiled:
        raise RuntimeError(f"{len(compiled)} programs were compiled while steps were timed")


def compare(length, repeats):
    size = SIZES[length]
    ours = Ours(size["rows"], length)
    opponents = {
        "PyTorch eager": Opponent(size["rows"], length).step,
        "torch.compile": Opponent(size["rows"], length, compiled=True).step,
    }
    contestants = {"ours": ours.step, **opponents, "resonance": lambda: ours.step("resonance")}
    ours.step()
    with nothing_compiled():
        seconds = interleaved(contestants, repeats)
    middle, best = medians(seconds), against_best(seconds, "ours", list(opponents))
    return {
        "length": length,
        "rows": size["rows"],
        "mesh": dict(ours.mesh.shape),
        "micro": ours.micro,
        "rounds": repeats,
        "seconds_a_step": middle,
        "tokens_a_second": {name: size["rows"] * length / value for name, value in middle.items()},
        "best": best,
        "times_as_fast": 1 / best["ratio"],
        "target": size["target"],
        "resonance_over_yarn": ratio(seconds, "resonance", "ours"),
        "resonance_over_yarn_by_round": [
            round(a / b, 3) for a, b in zip(seconds["resonance"], seconds["ours"], strict=True)
        ],
        "profile": profile(ours, repeats, middle["ours"]),
    }


def profile(ours, repeats, whole):
    """Seconds of the step's parts, each alone and compiled, as the step cuts and repeats them."""
    (rows, length), c, mesh = ours.shape, FIFTY, ours.mesh
    pieces = rows // (ours.micro or rows)
    each = rows // pieces
    put = lambda x, axes: jax.device_put(x, sharding(mesh, axes, x.shape))
    normal = lambda *shape: np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    heads = put(normal(each, length, c.n_heads, c.head_dim), ("batch", "time", "heads", None))
    hidden = put(normal(each, length, c.d_model), ("batch", "time", None))
    weight = put(normal(c.d_model, c.vocab_size), ("embed", "vocab"))
    targets = put(tokens_of(0, each, length), ("batch", "time"))
    one, tx = ours.state, ours.program.tx

    attend = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v).sum(), (0, 1, 2)))
    score = jax.jit(jax.grad(lambda x, w: linear_cross_entropy(x, w, targets).sum(), (0, 1)))
    where = jax.tree.map(lambda x: x.sharding, one.params)
    update = jax.jit(
        lambda grads, state: jax.tree.map(
            jnp.add, state.params, tx.update(grads, state.opt_state, state.params)[0]
        ),
        out_shardings=where,
    )
    square = jnp.asarray(normal(2048, 2048))
    multiply = jax.jit(lambda x: x @ x)
    seconds = medians(
        interleaved(
            {
                "attention": lambda: jax.block_until_ready(attend(heads, heads, heads)),
                "loss": lambda: jax.block_until_ready(score(hidden, weight)),
                "optimizer": lambda: jax.block_until_ready(update(one.params, one)),
                "product": lambda: jax.block_until_ready(multiply(square)),
            },
            repeats,
        )
    )
    peak = 2 * 2048**3 / seconds.pop("product")
    seconds["attention"] *= c.n_layers * pieces
    seconds["loss"] *= pieces
    seconds["everything else"] = whole - sum(seconds.values())
    tokens = rows * length
    head = 6 * c.d_model * c.vocab_size * tokens
    mixing = (flops.per_token(c, length) - flops.per_token(c, 1)) * tokens
    layers = flops.per_token(c, 1) * tokens - head
    recomputed = head // 3
    return {
        "seconds": seconds,
        "gemm_peak_gflops": peak / 1e9,
        "gflop": {
            "products of the layers": layers / 1e9,
            "attention": mixing / 1e9,
            "head and loss": head / 1e9,
            "logits and scores made a second time": (recomputed + mixing / 6) / 1e9,
        },
        "seconds_at_peak": (layers + mixing + head + recomputed + mixing / 6) / peak,
        "share_of_peak": (layers + mixing + head) / whole / peak,
    }


def long_step():
    """One step of 16,384 tokens as the command would take it: every layer recomputed, time cut in two."""
    jax.config.update("jax_num_cpu_devices", THREADS)
    Ours(1, 16_384, remat="full").step()


ALONE = {"train-step-16384": long_step}


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in ALONE:
        report_alone(sys.argv[1], ALONE[sys.argv[1]])
        return 0
    if sys.argv[1:] == ["long"]:
        memory = alone("train-step-16384")
        print(
            f"{memory['what']}: {memory['peak_anonymous_gb']:.2f} GB at the peak, {memory['seconds']:.0f} s"
        )
        write("finetune_long", {**machine(), "fresh_process": [memory]})
        return 1 if memory["peak_anonymous_gb"] > 6 else 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", THREADS)
    result = {**machine(), "parameters": model.Decoder(FIFTY, jax.random.key(0)).count_parameters()}
    result["losses"] = largest_difference()
    print(f"losses of 25 steps differ by at most {result['losses']['largest_difference']:.1e}", flush=True)
    if result["losses"]["largest_difference"] > 1e-4:
        print("the two do not train the same model; nothing is timed.")
        return 1
    result["speed"] = []
    for length in SIZES:
        row = compare(length, arguments.repeats)
        result["speed"].append(row)
        seconds = row["seconds_a_step"]
        print(
            f"{row['rows']} x {length}: {row['times_as_fast']:.2f} times the steps a second of "
            f"{row['best']['opponent']} ("
            + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
            + f" s), target {row['target']}; "
            f"Resonance YaRN takes {row['resonance_over_yarn']:.3f} times YaRN's time; "
            f"{row['profile']['share_of_peak']:.0%} of the peak",
            flush=True,
        )
    write("finetune", result)
    return 1 if any(row["times_as_fast"] < row["target"] for row in result["speed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
