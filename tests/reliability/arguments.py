"""Options that no command can follow: refused in one sentence before anything is made."""

import dataclasses
import math
import random
from pathlib import Path

from configs import finetune as finetune_config
from configs import leval as leval_config
from configs import parity as parity_config
from configs import passkey as passkey_config
from configs import posgen as posgen_config
from configs import quickstart as quickstart_config
from experiments import finetune, leval, parity, passkey, perplexity, posgen, quickstart
from resonance_jax.command import with_options
from tests.reliability.judge import Verdict, judged
from tests.reliability.scored import config_of

NAN, HUGE = math.nan, 2**70
PERPLEXITY = {
    "lengths": [(), (0,), (-3,), (1,), (32, -1), (2**40,)],
    "encodings": [(), ("",), ("yarn@",), ("own@other",), ("linear" * 50,)],
    "corpora": [(), ("",), ("\0",), ("nowhere/at/all",)],
    "checkpoints": [(), ("",), ("a=",), ("=",), ("/dev/null",), ("nowhere",)],
    "scale": [NAN, -1.0, 0.0, math.inf, 1e308],
    "train_length": [0, -5, HUGE],
    "documents": [0, -1],
    "stride": [0, -1],
    "min_tokens": [-1, HUGE],
    "bos": ["x", "-1", "99999999999", "259", ""],
    "tokenizer": ["", "nowhere", "/dev/null"],
    "protocol": ["", "windows"],
    "dtype": ["int8", "", "float999"],
    "parallel": ["", "all"],
    "split": ["", "nowhere"],
    "text_field": [""],
}
"""By option, values that the perplexity command refuses, whichever it is."""
ELSEWHERE = {
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
    "quickstart": {
        "steps": [0, -1],
        "train_length": [0],
        "length": [33, 0],
        "head_dim": [0, 5],
        "documents": [0],
        "seed": [-1],
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
        "lengths": [(), (-1.0,), (NAN,)],
        "positions": [(-1,)],
        "checkpoint": ["nowhere", ""],
        "seed": [-1],
    },
}
"""By command and option, values that it refuses."""
COMMANDS = {
    "finetune": (finetune.run, finetune_config.CPU),
    "posgen": (posgen.run, posgen_config.PRESETS["smoke"][1]),
    "quickstart": (quickstart.run, quickstart_config.Config()),
    "passkey": (passkey.run, passkey_config.PRESETS["cpu"][1]),
    "leval": (leval.run, leval_config.PRESETS["any"][1]),
    "parity": (parity.run, parity_config.Config()),
}


def an_argument(rng: random.Random, folder: Path) -> Verdict:
    """One option of one command, set to what it cannot be."""
    name = rng.choice(["perplexity", "perplexity", *ELSEWHERE])
    values = PERPLEXITY if name == "perplexity" else ELSEWHERE[name]
    option = rng.choice(sorted(values))
    value = rng.choice(values[option])
    run_dir = folder / "run"
    if name == "perplexity":
        run, config = perplexity.run, dataclasses.replace(config_of(folder, run_dir), **{option: value})
    else:
        run, config = COMMANDS[name]
        given = {"checkpoint": str(folder / "small"), "data": str(folder)} if name == "leval" else {}
        config = with_options(config, **{"run_dir": str(run_dir), **given, option: value})
    verdict = judged(run, config, [], run_dir)
    if verdict.outcome != "refused":
        verdict.faults.append(("sentence", f"{name} --{option} {value!r} is accepted: {verdict.outcome}"))
    verdict.faults = [(kind, f"{name} --{option} {value!r}: {what}") for kind, what in verdict.faults]
    return verdict
