"""Fine-tuning as its user runs it: end to end, killed and resumed to the bit, mistakes in one sentence."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.finetune import CPU, PRESETS, Config
from experiments.command import guarded
from experiments.finetune import mesh_sizes, run
from resonance_jax import interop, model, rope
from resonance_jax.files import read_json

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """Options: a small checkpoint, twenty short modules of the standard library, short rows."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "text").mkdir()
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]:
        (folder / "text" / module.with_suffix(".txt").name).write_text(module.read_text()[:2000])
    shape = model.PRESETS["tiny"].replace(d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=48)
    lm = model.Decoder(shape, jax.random.key(0))
    interop.save_hf(lm, folder / "base", rope=rope.RopeSpec(head_dim=16, train_length=32), length=32)
    return [
        *("cpu", "--checkpoint", str(folder / "base"), "--corpus", str(folder / "text")),
        *("--cache-dir", str(folder / "tokens"), "--length", "64", "--scale", "2", "--batch-size", "4"),
        *("--micro", "2", "--steps", str(STEPS), "--train-length", "32"),
    ]


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    command = [sys.executable, "-m", "experiments.finetune", *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory) -> Path:
    """The run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = finish(start(*given, "--profile", "2", "--run-dir", str(folder)))
    assert code == 0, err
    assert "device: " in out and "Resonance YaRN" in out and "tokens/s" in out
    return folder


def test_it_writes_everything_it_promises(whole):
    result = read_json(whole / "finetune.json")
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {"loss", "grad_norm", "update_norm", "tokens_per_second"} <= records[0].keys()
    assert result["summary"]["tokens"] == STEPS * 4 * 64
    assert result["summary"]["last loss"] < result["summary"]["first loss"] - 0.05
    assert (whole / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((whole / "profile").rglob("*.xplane.pb"))
    tuned = interop.load_hf(whole / "hf")
    spec = rope.RopeSpec("yarn", head_dim=16, scale=2.0, train_length=32, resonance=True)
    assert rope.same(rope.frequencies(tuned.rope, length=64), rope.frequencies(spec, length=64))
    assert tuned.config.n_layers == 2


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.full)])
def test_killed_and_resumed_it_ends_in_the_same_weights(given, whole, tmp_path, kills):
    """Kills in steps and in saves, one of them SIGTERM, which saves and exits 130."""
    rng, folder = random.Random(kills), tmp_path / "run"
    command = [*given, "--save-seconds", "0", "--run-dir", str(folder)]
    targets = sorted(rng.sample(range(2, STEPS - 2), kills))
    for number, step in enumerate(targets):
        process = start(*command)
        while logged(folder) < step and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGTERM if number == 1 else signal.SIGKILL)
        code, _, err = finish(process)
        assert code in (0, 130 if number == 1 else -signal.SIGKILL), err
        assert "Traceback" not in err
    code, _, err = finish(start(*command))
    assert code == 0, err
    want, got = (load_file(path / "hf" / "model.safetensors") for path in (whole, folder))
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert logged(folder) == STEPS


def config_of(given: list[str], **changes) -> Config:
    """The same options as a Config."""
    names = [option.removeprefix("--").replace("-", "_") for option in given[1::2]]
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    convert = {int: int, float: float}
    values = {
        name: convert.get(kinds[name], str)(value) for name, value in zip(names, given[2::2], strict=True)
    }
    values["train_length"] = int(values["train_length"])
    return dataclasses.replace(CPU, **{**values, **changes})


def test_a_finished_run_says_so_and_goes_on_elsewhere(given, whole, capsys):
    """Where a run is computed is not what it is: another mesh is the same run."""
    config = config_of(given, data=1, fsdp=-1, micro=4, run_dir=str(whole))
    assert guarded(run, config) == 0
    assert "last loss" in capsys.readouterr().out


def test_the_cpu_preset_trains_its_own_base(given, tmp_path):
    small = ["--shape", "tiny", "--pretrain-steps", "3", "--steps", "3", "--lora", "--checkpoint", "None"]
    code, out, err = finish(start(*given, *small, "--run-dir", str(tmp_path / "run")))
    assert code == 0, err
    assert "pretrain 3/3" in out and (tmp_path / "run" / "base" / "config.json").exists()


def test_devices_beyond_the_rows_cut_time():
    sizes = lambda devices, **changes: tuple(
        mesh_sizes(dataclasses.replace(CPU, **changes), devices).values()
    )
    assert sizes(2, batch_size=8) == (2, 1, 1, 1)
    assert sizes(2, batch_size=1) == (1, 1, 1, 2)
    assert sizes(16, batch_size=2, data=2, fsdp=-1, tensor=2) == (2, 1, 2, 4)
    assert sizes(8, batch_size=3, data=-1, sequence=2) == (4, 1, 1, 2)  # as stated: refused later
    _, paper = PRESETS["7b-long-yarn"]
    assert tuple(mesh_sizes(paper, 128).values()) == (1, 64, 1, 2)


def test_the_plan_says_whether_it_fits(capsys):
    _, config = PRESETS["7b-long-yarn"]
    for chip, code, words in (("v5p", 0, "It fits"), ("v5e", 1, "It does NOT fit")):
        assert guarded(run, dataclasses.replace(config, plan=True, devices=8, chip=chip)) == code
        out = capsys.readouterr().out
        assert words in out and "residual stream" in out


MISTAKES = {
    "no checkpoint there": (dict(checkpoint="/nowhere"), "/nowhere is not a directory"),
    "no such corpus": (dict(corpus="nothing"), "no corpus of that name"),
    "no such encoding": (dict(method="rotary"), "rotary"),
    "rows that do not divide": (dict(micro=3), "cannot be cut"),
    "a mesh of other size": (dict(data=1, fsdp=1, tensor=7), "needs 7 devices"),
    "other settings": (dict(lr=0.5), "holds a run of another config (lr: 0.001 there, 0.5 here)"),
    "too little text": (dict(length=65_536), "fewer than one chunk"),
    "no such shape": (dict(checkpoint=None, shape="huge"), "there is no shape 'huge'"),
    "no such chip": (dict(plan=True, chip="abacus"), "there is no chip 'abacus'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(given, whole, tmp_path, name, capsys):
    changes, sentence = MISTAKES[name]
    folder = whole if name == "other settings" else tmp_path / "run"
    assert guarded(run, config_of(given, **changes, run_dir=str(folder))) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1
