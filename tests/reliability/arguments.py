"""Options that no command can follow: refused in one sentence before anything is made."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from configs import finetune as finetune_config
from configs import from_scratch as from_scratch_config
from configs import leval as leval_config
from configs import parity as parity_config
from configs import passkey as passkey_config
from configs import perplexity as perplexity_config
from configs import posgen as posgen_config
from experiments import finetune, from_scratch, leval, parity, passkey, perplexity, posgen
from resonance_jax.command import options_of, with_options
from tests.reliability.judge import Verdict, judged
from tests.reliability.scored import TEXTS, config_of

NAN, HUGE = math.nan, 2**70
VALUES = {
    "perplexity": {
        "lengths": [(), (0,), (-3,), (1,), (32, -1), (2**40,)],
        "encodings": [(), ("",), ("yarn@",), ("own@other",), ("linear" * 50,)],
        "corpora": [(), ("",), ("\0",), ("nowhere/at/all",)],
        "checkpoints": [(), ("",), ("a=",), ("=",), ("/dev/null",), ("nowhere",)],
        "scale": [NAN, -1.0, 0.0, math.inf, 1e308],
        "train_length": [0, -5, HUGE],
        "documents": [0, -1],
        "stride": [0, -1],
        "min_tokens": [-1, HUGE],
        "bos": ["nonesuch", "-1", "99999999999", "259", ""],
        "tokenizer": ["", "nowhere", "/dev/null"],
        "protocol": ["", "windows"],
        "dtype": ["int8", "", "float999"],
        "parallel": ["", "all"],
        "split": ["", "nowhere"],
        "text_field": [""],
    },
    "finetune": {
        "steps": [0, -1],
        "batch_size": [0, -1],
        "length": [0, -5],
        "scale": [NAN, -1.0, 1e308],
        "seed": [-1, 2**32],
        "keep": [0, -1],
        "micro": [-1],
        "lr": [-1.0, NAN],
        "save_seconds": [NAN],
        "method": ["", "yam"],
        "dtype": ["int8"],
        "train_length": [0],
    },
    "posgen": {
        "seeds": [(), (-1,), (0, 0)],
        "epochs": [0],
        "head_dim": [0, 7],
        "length": [0],
        "encodings": [("yam",), ()],
        "tasks": [("x",), ()],
        "lr": [NAN, -1.0],
    },
    "from_scratch": {
        "steps": [0, -1],
        "train_length": [0],
        "length": [33, 0],
        "head_dim": [0, 5],
        "documents": [0],
        "seeds": [(), (-1,), (0, 0)],
        "batch_size": [0],
    },
    "passkey": {
        "lengths": [(), (-1,), (0,)],
        "depths": [(), (NAN,), (2.0,)],
        "trials": [0, -1],
        "seeds": [(-1,)],
        "stages": [()],
        "template": [""],
        "batch_size": [0],
    },
    "leval": {
        "batch_size": [0],
        "max_new_tokens": [0, -1],
        "tasks": [(), ("x",)],
        "context": ["", "-1k"],
        "limit": [0, -1],
        "checkpoint": ["", "nowhere"],
        "length": [0, -1],
    },
    "parity": {
        "lengths": [(-1.0,), (NAN,)],
        "positions": [(-1,)],
        "checkpoint": ["nowhere", ""],
        "seed": [-1],
    },
}
"""By command and option, values that it refuses."""
COMMANDS = {
    "finetune": (finetune.run, finetune_config.CPU),
    "posgen": (posgen.run, posgen_config.PRESETS["smoke"][1]),
    "from_scratch": (from_scratch.run, from_scratch_config.Config()),
    "passkey": (passkey.run, passkey_config.PRESETS["cpu"][1]),
    "leval": (leval.run, leval_config.PRESETS["any"][1]),
    "parity": (parity.run, parity_config.Config()),
    "perplexity": (perplexity.run, perplexity_config.PRESETS["sweep"][1]),
}


SMALL: dict[str, Callable[[Path], dict[str, object]]] = {
    "perplexity": lambda folder: options_of(config_of(folder, folder, encodings=("yarn",))),
    "finetune": lambda folder: {
        **{"checkpoint": str(folder / "small"), "corpus": str(folder / "long.jsonl"), "from_scratch": None},
        **{
            "train_length": 32,
            "length": 64,
            "steps": 2,
            "batch_size": 2,
            "compare": False,
            "tokenizer": None,
        },
    },
    "posgen": lambda folder: {
        **{"tasks": ("cot",), "encodings": ("rope",), "train_length": 12, "length": 32, "train_rows": 20},
        **{"val_rows": 4, "test_rows": 4, "d_model": 16, "head_dim": 8, "d_ff": 16, "n_layers": 1},
        **{"epochs": 1, "batch_size": 8},
    },
    "from_scratch": lambda folder: {
        **{"corpus": str(folder / "long.jsonl"), "train_length": 32, "length": 64, "d_model": 32},
        **{"head_dim": 16, "n_layers": 1, "steps": 2, "batch_size": 4, "finetune_steps": 1, "documents": 4},
    },
    "passkey": lambda folder: {
        **{"encodings": ("rope",), "lengths": (64,), "depths": (0.5,), "trials": 1, "train_length": 64},
        **{"seeds": (0,), "d_model": 16, "n_layers": 1, "head_dim": 16, "stages": (64,), "questions": 1},
        **{"stage_steps": (2,), "stage_rows": (2,), "finetune_steps": 0},
    },
    "leval": lambda folder: {
        **{"checkpoint": str(folder / "small"), "data": str(folder / "questions"), "tasks": ("tpo",)},
        **{"context": "1k", "max_new_tokens": 2},
    },
    "parity": lambda folder: {"dtypes": ("float64",), "positions": (8,)},
}
"""By command, options with which it takes seconds, should it accept what it must not."""


def base(folder: Path) -> None:
    """Text enough for every command, and a folder with questions of L-Eval."""
    lines = [json.dumps({"text": f"{i} " + text * 60}) for i, text in enumerate(TEXTS * 10)]
    (folder / "long.jsonl").write_text("\n".join(lines))
    (folder / "questions").mkdir()
    question = {
        "input": "A text.",
        "instructions": ["Q?"],
        "outputs": ["A"],
        "evaluation": "exam",
        "source": "",
    }
    for task in leval_config.Config().tasks:
        (folder / "questions" / f"{task}.jsonl").write_text(json.dumps(question) + "\n")


def an_argument(rng: random.Random, folder: Path) -> Verdict:
    """One option of one command, set to what it cannot be."""
    name = rng.choice(["perplexity", *VALUES])
    values = VALUES[name]
    option = rng.choice(sorted(values))
    value = rng.choice(values[option])
    run_dir = folder / "run"
    run, config = COMMANDS[name]
    small = {**SMALL[name](folder), "run_dir": str(run_dir)}
    verdict = judged(
        lambda changes: run(with_options(config, **changes)), {**small, option: value}, [], run_dir
    )
    if verdict.outcome != "refused":
        verdict.faults.append(("sentence", f"{name} --{option} {value!r} is accepted: {verdict.outcome}"))
    verdict.faults = [(kind, f"{name} --{option} {value!r}: {what}") for kind, what in verdict.faults]
    return verdict
