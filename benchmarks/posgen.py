"""PosGen's training, run-steps a second, against PyTorch eager training one run.

    .venv/bin/python benchmarks/posgen.py [--only 64|512] [--repeats 5]

The decoder is T5-like (no 1/sqrt(H), tied and rescaled head, interleaved rotation), two layers; a batch is
128 sequences of 64 positions; AdamW under PyTorch's OneCycleLR. The opponent has two threads, PyTorch's fused
attention and AdamW, the head only where the loss needs it, and the same dropout. First both train 25 steps
from the same weights without dropout: their losses must agree to 1e-4. Then both are timed, in turn, with the
protocol's dropout of 0.1 and without; the opponent eager and with its forward and backward compiled.
Targets, with dropout: 2.5 at width 64, 1.4 at width 512.

Ratios are medians over the rounds; compilation is apart. Writes
results/speed/posgen_<processor>.json; about five minutes on two cores; exits with 1 when a target is missed.
"""

import argparse
import os
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from beside import THREADS, against_best, interleaved, machine, medians, write
from torch.nn import functional

from resonance_jax import model, rope, train
from resonance_jax.data import posgen
from resonance_jax.train.many_program import ManyRunsProgram

BATCH, LENGTH, ORDER, CHECKED = 128, 64, 4, 25
OPTIMIZER = train.OptimizerConfig(lr=2e-4, beta2=0.999, schedule="onecycle", warmup=0.1)
SIZES = {
    64: {"n_heads": 2, "head_dim": 32, "d_ff": 256, "runs": 4, "steps": 8, "target": 2.5},
    512: {"n_heads": 8, "head_dim": 64, "d_ff": 2048, "runs": 2, "steps": 2, "target": 1.4},
}


class Block(torch.nn.Module):
    """One pre-norm layer."""

    def __init__(self, c: model.DecoderConfig):
        super().__init__()
        self.c, inner = c, c.n_heads * c.head_dim
        matrix = lambda i, o: torch.nn.Linear(i, o, bias=False)
        self.attn_norm, self.mlp_norm = (torch.nn.Parameter(torch.ones(c.d_model)) for _ in range(2))
        self.q, self.k, self.v = (matrix(c.d_model, inner) for _ in range(3))
        self.o = matrix(inner, c.d_model)
        self.up, self.down = matrix(c.d_model, c.d_ff), matrix(c.d_ff, c.d_model)

    def forward(self, x, cos, sin):
        c, (B, T, _) = self.c, x.shape
        drop = lambda x: functional.dropout(x, c.dropout)
        h = functional.rms_norm(x, (c.d_model,), self.attn_norm, c.norm_eps)
        q, k, v = (m(h).view(B, T, c.n_heads, c.head_dim).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, dropout_p=c.dropout, is_causal=True, scale=1.0
        )
        x = x + drop(self.o(mixed.transpose(1, 2).reshape(B, T, -1)))
        h = functional.rms_norm(x, (c.d_model,), self.mlp_norm, c.norm_eps)
        return x + drop(self.down(drop(functional.relu(self.up(h)))))


def rotate(x, cos, sin):
    """Turn the pairs (2i, 2i + 1)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


class Opponent(torch.nn.Module):
    """The same decoder in PyTorch, from our weights, with its optimizer and schedule."""

    def __init__(self, c: model.DecoderConfig, params, total_steps: int, compiled: bool = False):
        super().__init__()
        self.loss = torch.compile(self.eager_loss) if compiled else self.eager_loss
        self.c = c
        self.embed = torch.nn.Parameter(tensor(params["embed"]))
        self.final_norm = torch.nn.Parameter(tensor(params["final_norm"]))
        self.blocks = torch.nn.ModuleList(Block(c) for _ in range(c.n_layers))
        with torch.no_grad():
            for name, stacked in params["layers"].items():
                for block, value in zip(self.blocks, stacked, strict=True):
                    part = getattr(block, name)
                    part = part if isinstance(part, torch.nn.Parameter) else part.weight.mT
                    part.copy_(tensor(value))
        freqs = rope.frequencies(rope.RopeSpec(head_dim=c.head_dim))
        angles = torch.outer(torch.arange(LENGTH).double(), torch.tensor(freqs.inv_freq64))
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        o = OPTIMIZER
        self.adamw = torch.optim.AdamW(
            self.parameters(),
            lr=o.lr,
            betas=(0.95, o.beta2),
            eps=o.eps,
            weight_decay=o.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.adamw, max_lr=o.lr, total_steps=total_steps, pct_start=o.warmup
        )

    def eager_loss(self, tokens) -> torch.Tensor:
        """The mean loss of i64[B, 1 + T]."""
        c = self.c
        x = functional.dropout(functional.embedding(tokens[:, :-1], self.embed), c.dropout)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = functional.rms_norm(x[:, ORDER:], (c.d_model,), self.final_norm, c.norm_eps)
        x = functional.dropout(x, c.dropout) * c.head_scale
        logits = x.reshape(-1, c.d_model) @ self.embed.T
        return functional.cross_entropy(logits, tokens[:, ORDER + 1 :].reshape(-1))

    def step(self, tokens) -> torch.Tensor:
        """One optimizer step on i64[B, 1 + T]; the loss before it."""
        loss = self.loss(tokens)
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()
        self.adamw.step()
        self.schedule.step()
        return loss.detach()


def tensor(x) -> torch.Tensor:
    return torch.tensor(np.asarray(x))


def shape(d_model: int, dropout: float) -> model.DecoderConfig:
    size = SIZES[d_model]
    return model.PRESETS["t5-small-decoder"].replace(
        d_model=d_model,
        n_heads=size["n_heads"],
        n_kv_heads=size["n_heads"],
        head_dim=size["head_dim"],
        d_ff=size["d_ff"],
        head_scale=d_model**-0.5,
        dropout=dropout,
    )


def examples() -> dict:
    split = posgen.split("corrected", "recursive", "train", LENGTH)
    # 64 positions are read and 64 predicted: targets are one longer than the tokens.
    return {"tokens": np.asarray(split.tokens)[:, :-1], "targets": np.asarray(split.labels)}


def largest_difference(d_model: int, data: dict) -> float:
    """Of the losses of 25 steps from the same weights, without dropout: two runs at once against PyTorch."""
    config, size = shape(d_model, 0.0), SIZES[d_model]
    params = model.Decoder(config, key=jax.random.key(0)).params
    rows = train.Rows(len(data["tokens"]), BATCH, [0])
    both = jax.tree.map(lambda x: np.stack([x, x]), params)
    freqs = rope.frequencies(rope.RopeSpec(head_dim=config.head_dim))
    training = train.TrainConfig(CHECKED, OPTIMIZER, micro=16, steps_per_call=size["steps"])
    with tempfile.TemporaryDirectory() as folder:
        runs = train.fit_many(
            config,
            [0, 0],
            [freqs, freqs],
            lambda step: rows[step][0],
            training,
            folder,
            examples=data,
            params=both,
        )
    ours = np.asarray([record["loss"] for record in runs.history])
    opponent = Opponent(config, params, CHECKED)
    full = np.concatenate([data["tokens"], data["targets"][:, -1:]], axis=1)
    theirs = [opponent.step(torch.tensor(full[rows[i][0]]).long()).item() for i in range(CHECKED)]
    return float(np.abs(ours - np.asarray(theirs)[:, None]).max())


def ours(config: model.DecoderConfig, data: dict, runs: int, steps: int):
    """A function that trains `runs` runs for `steps` steps, by the program that fit_many runs."""
    training = train.TrainConfig(1_000_000, OPTIMIZER, micro=16, steps_per_call=steps)
    freqs = train.stack_frequencies([rope.frequencies(rope.RopeSpec(head_dim=config.head_dim))] * runs)
    rows = train.Rows(len(data["tokens"]), BATCH, range(runs))
    program = ManyRunsProgram(config, range(runs), freqs, rows.__getitem__, training, data)
    state, done = program.first(), 0

    def run():
        nonlocal state, done
        state, metrics = program.advance(state, done, steps)
        done += steps
        return metrics

    return run


def theirs(config: model.DecoderConfig, data: dict, steps: int, compiled: bool):
    opponent = Opponent(config, model.Decoder(config, key=jax.random.key(0)).params, 1_000_000, compiled)
    full = np.concatenate([data["tokens"], data["targets"][:, -1:]], axis=1)
    batches = [torch.tensor(full[i * BATCH : (i + 1) * BATCH]).long() for i in range(steps)]
    return lambda: [opponent.step(batch) for batch in batches]


def compare(d_model: int, dropout: float, data: dict, repeats: int) -> dict:
    size, config = SIZES[d_model], shape(d_model, dropout)
    runs, steps = size["runs"], size["steps"]
    their_steps = max(1, steps // 2)
    opponents = {
        "PyTorch eager": theirs(config, data, their_steps, False),
        "torch.compile": theirs(config, data, their_steps, True),
    }
    seconds = interleaved({"ours": ours(config, data, runs, steps), **opponents}, repeats)
    steps_of = {"ours": runs * steps} | dict.fromkeys(opponents, their_steps)
    each = {name: [value / steps_of[name] for value in values] for name, values in seconds.items()}
    best = against_best(each, "ours", list(opponents))
    return {
        "d_model": d_model,
        "dropout": dropout,
        "runs_at_once": runs,
        "steps_a_call": steps,
        "rounds": repeats,
        "milliseconds_a_run_step": {name: 1e3 * value for name, value in medians(each).items()},
        "best": best,
        "times_as_fast": 1 / best["ratio"],
        "target": size["target"] if dropout else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=int, choices=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", THREADS)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    data, missed = examples(), []
    result = {**machine(), "batch": BATCH, "positions": LENGTH, "losses_differ_by": {}, "speed": []}
    for d_model in [arguments.only] if arguments.only else SIZES:
        difference = largest_difference(d_model, data)
        result["losses_differ_by"][str(d_model)] = difference
        print(f"width {d_model}: losses of {CHECKED} steps differ by at most {difference:.1e}", flush=True)
        if difference > 1e-4:
            print("the two do not train the same model; nothing is timed.")
            return 1
        for dropout in (0.1, 0.0):
            repeats = arguments.repeats if d_model == 64 else max(3, arguments.repeats // 2)
            row = compare(d_model, dropout, data, repeats)
            result["speed"].append(row)
            ms = row["milliseconds_a_run_step"]
            print(
                f"  dropout {dropout}: {row['times_as_fast']:.2f} times the run-steps a second of "
                f"{row['best']['opponent']} ("
                + ", ".join(f"{name} {value:.1f}" for name, value in ms.items())
                + " ms a run-step)"
                + (f", target {row['target']}" if row["target"] else ""),
                flush=True,
            )
            missed += [row] if row["target"] and row["times_as_fast"] < row["target"] else []
    write("posgen", result)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
