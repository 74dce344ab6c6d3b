"""Sixty kills at random moments over every command: resumed to its end, each gives the same figures.

python -m pytest -s tests/reliability/test_kills.py     prints the counts by command
"""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.reliability.resumed import Command, finish, killed, moment

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TRAINING = "--d-model 32 --n-layers 1 --head-dim 16"
COMMANDS = {
    "perplexity": Command(
        "experiments.perplexity sweep --checkpoints small=INPUTS/small --corpora INPUTS/long.jsonl "
        "--encodings own yarn dynamic-ntk --lengths 32 64 --documents 8 --run-dir OUT",
        ("perplexity.*s*", "positions.csv", "encodings.json"),
    ),
    "passkey": Command(
        "experiments.passkey checkpoint --checkpoints small=INPUTS/small --encodings own yarn "
        "--template short-bytes --lengths 64 96 --depths 0 1 --trials 2 --run-dir OUT",
        ("passkey.csv", "encodings.json"),
    ),
    "leval": Command(
        "experiments.leval any --checkpoint INPUTS/small --data INPUTS/questions --context 1k "
        "--max-new-tokens 4 --run-dir OUT",
        ("table.csv", "predictions/*.jsonl"),
    ),
    "finetune": Command(
        "experiments.finetune cpu --checkpoint INPUTS/small --corpus INPUTS/long.jsonl --no-compare "
        "--train-length 32 --length 64 --scale 2 --steps 12 --batch-size 2 --save-seconds 0 --resonance "
        "--run-dir OUT",
        ("hf/*.safetensors", "hf/config.json", "hf/tokenizer*.json"),
    ),
    "posgen": Command(
        "experiments.posgen smoke --tasks cot --encodings rope resonance-yarn --train-length 12 --length 32 "
        f"--train-rows 40 --val-rows 6 --test-rows 5 {TRAINING} --d-ff 16 --epochs 3 --batch-size 16 "
        "--micro 0 --save-seconds 0 --run-dir OUT",
        ("table1.csv", "encodings.json"),
    ),
    "from_scratch": Command(
        f"experiments.from_scratch --corpus INPUTS/long.jsonl --train-length 32 --length 128 {TRAINING} "
        "--steps 8 --batch-size 4 --finetune-steps 4 --documents 4 --run-dir OUT",
        ("perplexity.csv", "encodings.json"),
    ),
    "export": Command(
        "experiments.rope export INPUTS/small --encoding resonance-yarn --scale 4 --out OUT/hf --no-check "
        "--run-dir OUT/run",
        ("hf/*",),
    ),
    "parity": Command(
        "experiments.parity --checkpoint INPUTS/small --encodings own yarn --dtypes float64 --positions 16 "
        "--run-dir OUT",
        ("parity.csv",),
    ),
}
KILLS = {
    "perplexity": 10,
    "passkey": 7,
    "leval": 7,
    "finetune": 10,
    "posgen": 8,
    "from_scratch": 8,
    "export": 5,
}
KILLS["parity"] = 60 - sum(KILLS.values())
SAMPLE = {"perplexity": 2, "export": 2}


@pytest.mark.parametrize(
    "kills", [SAMPLE, pytest.param(KILLS, marks=pytest.mark.full)], ids=["sample", "all"]
)
def test_kills(inputs, tmp_path, kills):
    """Every command is killed so often, in runs of up to three kills each, and compared when it has ended."""
    rng = random.Random("kills")
    rows, faults = [], []
    for name, wanted in kills.items():
        command, counts = COMMANDS[name], {"in time": 0, "too early": 0, "too late": 0}
        whole, seconds = _whole(command, inputs, tmp_path / name / "whole")
        done = differences = 0
        while done < wanted:
            out = tmp_path / name / f"killed-{done}"
            for _ in range(min(rng.randrange(1, 4), wanted - done)):
                outcome, fault = killed(command, inputs, out, rng.choice(SIGNALS), moment(rng, seconds))
                counts[outcome] += 1
                done += 1
                faults += [f"{name}: {fault}"] if fault else []
            code, said = finish(command.start(inputs, out))
            if code not in (0, 3):
                faults.append(f"{name}: goes on with exit {code}: {said[-600:]}")
            elif changed := _changed(whole, command.figures(out)):
                differences += 1
                faults.append(f"{name}: {changed} differ after kills")
        rows.append([name, done, *counts.values(), differences])
        print(rows[-1], *faults, sep="\n", flush=True)
    print(_table(rows))
    assert not faults, "\n".join(faults)


def _whole(command: Command, inputs: Path, out: Path) -> tuple[dict[str, object], float]:
    """The figures of the command that nothing stopped, and about the seconds that the next run takes, which
    finds its programs compiled."""
    began = time.monotonic()
    code, said = finish(command.start(inputs, out))
    assert code in (0, 3), said
    return command.figures(out), 0.6 * (time.monotonic() - began)


def _changed(a: dict[str, object], b: dict[str, object]) -> list[str]:
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def _table(rows: list[list]) -> str:
    head = ["command", "kills", "in time", "too early", "too late", "differences"]
    total = ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows, total]
    return "\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
