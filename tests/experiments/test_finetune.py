"""Fine-tuning as its user runs it: end to end, killed and resumed to the bit, mistakes in one sentence."""

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.finetune import CPU, Config
from configs.from_scratch import Config as FromScratch
from experiments.finetune import run
from experiments.finetune.inputs import gather
from resonance_jax import interop, model, rope, train
from resonance_jax.command import guarded, options_of, with_options
from resonance_jax.data import corpora
from resonance_jax.files import read_json, write_json
from resonance_jax.parallel.distributed import VARIABLES
from resonance_jax.train.checkpoint import saved_params
from tests.bucket import bucket
from tests.fast_compile import FAST_COMPILE

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
SHAPE = model.PRESETS["tiny"].replace(d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=48)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict:
    """Settings: a small checkpoint, twenty short modules of the standard library, short rows."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "text").mkdir()
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]:
        (folder / "text" / module.with_suffix(".txt").name).write_text(module.read_text()[:2000])
    lm = model.Decoder(SHAPE, jax.random.key(0))
    interop.save_hf(lm, folder / "base", rope=rope.RopeSpec(head_dim=16, train_length=32), length=32)
    return {
        "checkpoint": str(folder / "base"),
        "corpus": str(folder / "text"),
        "cache_dir": str(folder / "tokens"),
        "train_length": 32,
        "length": 64,
        "scale": 2.0,
        "steps": STEPS,
        "batch_size": 4,
        "micro": 2,
        "compare": False,
        "resonance": True,
    }


def options(settings: dict) -> list[str]:
    """The settings as a command line over the cpu preset."""
    words = ["cpu"]
    for name, value in settings.items():
        option = name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{option}"]
            if isinstance(value, bool)
            else [f"--{option}", str(value)]
        )
    return words


def start(*arguments: str, **variables: str) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE, **variables}
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
    code, out, err = finish(start(*options({**given, "profile": 2, "run_dir": folder})))
    assert code == 0, err
    assert "device: " in out and "Resonance YaRN" in out and "tokens/s" in out
    return folder


def test_two_processes_fine_tune_in_one_folder(given, tmp_path):
    """They have the disk in common, and its lock: one of them opens the folder, writes and speaks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    few = {
        **given,
        "steps": 2,
        "micro": 4,
        "run_dir": tmp_path / "run",
        "cache_dir": str(tmp_path / "tokens"),
    }
    running = [
        start(*options(few), **dict(zip(VARIABLES, (f"localhost:{port}", "2", str(number)), strict=True)))
        for number in range(2)
    ]
    (code, out, err), (other, silent, more) = [finish(process) for process in running]
    assert (code, other) == (0, 0), err + more
    assert "2 process(es)" in out and all(line.startswith("[Gloo]") for line in silent.splitlines())
    assert logged(tmp_path / "run") == 2 and (tmp_path / "run" / "hf" / "config.json").exists()


def test_it_writes_everything_it_promises(whole):
    result = read_json(whole / "finetune.json")
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {"loss", "grad_norm", "update_norm", "tokens_per_second"} <= records[0].keys()
    (summary,) = result["runs"]
    assert summary["tokens"] == STEPS * 4 * 64
    assert summary["last loss"] < summary["first loss"] - 0.05
    assert (whole / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((whole / "profile").rglob("*.xplane.pb"))
    tuned = interop.load_hf(whole / "hf")
    spec = rope.RopeSpec("yarn", head_dim=16, scale=2.0, train_length=32, resonance=True)
    assert rope.same(rope.frequencies(tuned.rope, length=64), rope.frequencies(spec, length=64))
    assert tuned.config.n_layers == 2


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_killed_and_resumed_it_ends_in_the_same_weights(given, whole, tmp_path, kills):
    """Kills in steps and in saves, one of them SIGTERM, which saves and exits 130."""
    rng, folder = random.Random(kills), tmp_path / "run"
    command = options({**given, "save_seconds": 0, "run_dir": folder})
    targets = sorted(rng.sample(range(2, STEPS - 2), kills))
    for number, step in enumerate(targets):
        before = logged(folder)
        process = start(*command)
        # Several steps are logged at once: what is there already says nothing of this process.
        while logged(folder) < max(step, before + 1) and process.poll() is None:
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


def config_of(given: dict, **changes) -> Config:
    """In this process, which has eight devices: micro-batches as they suit them."""
    return with_options(CPU, **{**given, "micro": 0, **changes})


def test_a_finished_run_says_so_and_goes_on_elsewhere(given, whole, capsys):
    """Where a run is computed is not what it is: another mesh is the same run."""
    config = config_of(given, data=1, fsdp=-1, micro=4, run_dir=str(whole))
    assert guarded(run, config) == 0
    assert "last loss" in capsys.readouterr().out


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory) -> Path:
    """What experiments.from_scratch leaves of its training, but short: two runs and the config."""
    folder = tmp_path_factory.mktemp("from_scratch")
    config = FromScratch(d_model=32, head_dim=16, n_layers=1, train_length=32, steps=4)
    tables = [rope.frequencies(rope.RopeSpec(head_dim=16, resonance=r)) for r in (False, True)]
    tokens = np.tile(np.arange(8, dtype=np.int32), (2, 4))
    settings = train.TrainConfig(4, train.OptimizerConfig(lr=1e-2))
    shape, run_dir = config.shape(), folder / "train"
    train.fit_many(shape, [0, 0], tables, lambda _: {"tokens": tokens}, settings, run_dir)
    write_json(folder / "config.json", {"study": "from_scratch", **dataclasses.asdict(config)})
    return folder


@pytest.fixture
def begun(given, tmp_path):
    """A short finished run on copies of base and text: (settings, folder)."""
    for name in ("base", "text"):
        shutil.copytree(Path(given["checkpoint"]).parent / name, tmp_path / name)
    settings = {
        **{**given, "checkpoint": str(tmp_path / "base"), "corpus": str(tmp_path / "text")},
        **{"cache_dir": str(tmp_path / "tokens"), "run_dir": str(tmp_path / "run")},
        **{"steps": 2, "micro": 0, "batch_size": 8},
    }
    assert guarded(run, config_of(settings)) == 0
    return settings, tmp_path


@pytest.mark.parametrize("what", ["base", "text"])
def test_other_inputs_under_the_same_name_are_another_run(begun, what, capsys):
    """The base's weights replaced, or the last character of each document."""
    settings, folder = begun
    if what == "base":
        lm = model.Decoder(SHAPE, jax.random.key(1))
        shutil.rmtree(folder / "base")
        interop.save_hf(lm, folder / "base", rope=rope.RopeSpec(head_dim=16, train_length=32), length=32)
    else:
        for file in (folder / "text").iterdir():  # which of them are held out is a matter of their names
            file.write_text(file.read_text()[:-1] + "!")
    assert guarded(run, config_of(settings)) == 2
    err = capsys.readouterr().err
    assert "belongs to another run" in err and len(err.strip().splitlines()) == 1


def test_a_damaged_export_is_made_anew(begun, capsys):
    settings, folder = begun
    weights = folder / "run" / "hf" / "model.safetensors"
    before = weights.read_bytes()
    content = bytearray(before)
    content[-5] ^= 1
    weights.write_bytes(content)
    assert guarded(run, config_of(settings)) == 0
    assert "is not what the run wrote; it is made anew" in capsys.readouterr().out
    assert weights.read_bytes() == before


def test_frozen_weights_that_were_replaced_are_another_run(given, tmp_path, capsys):
    """LoRA's checkpoint holds adapters alone: they belong to the weights that they were trained beside."""
    shutil.copytree(given["checkpoint"], tmp_path / "base")
    settings = {**given, "checkpoint": str(tmp_path / "base"), "lora": True, "steps": 2, "micro": 0}
    settings |= {"batch_size": 8}
    settings |= {"cache_dir": str(tmp_path / "tokens"), "run_dir": str(tmp_path / "run")}
    assert guarded(run, config_of(settings)) == 0
    shutil.rmtree(tmp_path / "base")
    lm = model.Decoder(SHAPE, jax.random.key(2))
    interop.save_hf(lm, tmp_path / "base", rope=rope.RopeSpec(head_dim=16, train_length=32), length=32)
    assert guarded(run, config_of(settings)) == 2
    assert "first weights" in capsys.readouterr().err


def test_a_mesh_that_does_not_divide_the_rows_leaves_nothing_behind(given, tmp_path, capsys):
    config = config_of(given, micro=2, run_dir=str(tmp_path / "run"))  # eight devices
    assert guarded(run, config) == 2
    assert "a micro-batch of 2 rows cannot be cut over 4 devices" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_begun_on_four_devices_it_ends_on_one(given, whole, tmp_path):
    """The command itself, stopped on a mesh of four devices: the weights of the run on one mesh."""
    settings = {**given, "micro": 0, "save_seconds": 0, "run_dir": tmp_path / "run"}
    on = lambda count: {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    command = [sys.executable, "-m", "experiments.finetune", *options(settings)]
    pipes = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, env=on(4), **pipes)
    while logged(tmp_path / "run") < 10 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 130 and "device: 4 x" in out, err
    code, out, err = finish(subprocess.Popen(command, env=on(1), **pipes))
    assert code == 0 and "device: 1 x" in out, err
    want, got = (load_file(path / "hf" / "model.safetensors") for path in (whole, tmp_path / "run"))
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-5)


def test_it_fine_tunes_the_from_scratch_model_twice_and_says_what_that_gained(
    given, from_scratch, tmp_path, capsys, monkeypatch
):
    """The `cpu` preset in small: both encodings from one base, and the sweep."""
    readings, files = [], corpora._files
    monkeypatch.setattr(corpora, "_files", lambda *of: readings.append(of) or files(*of))
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text("abcdefgh" * 40)
    changes = dict(checkpoint=None, from_scratch=str(from_scratch), compare=True, steps=12, lr=1e-2, micro=0)
    where = dict(corpus=str(tmp_path / "text"), run_dir=str(tmp_path / "run"), cache_dir=None)
    config = config_of(given, **changes, **where)
    assert guarded(run, config) == 0
    assert len(readings) == 3  # to train; of what is held out, all for its digest, and what is scored
    out, folder = capsys.readouterr().out, tmp_path / "run"
    assert "base: the RoPE model of experiments.from_scratch" in out and "Resonance YaRN, fine-tuned" in out
    base, saved = interop.load_hf(folder / "base"), saved_params(from_scratch / "train" / "checkpoints")
    np.testing.assert_array_equal(base.params["embed"], saved["embed"][0])
    result = read_json(folder / "finetune.json")
    assert [row["encoding"] for row in result["runs"]] == ["YaRN", "Resonance YaRN"]
    labels = [
        "RoPE",
        "Dynamic NTK",
        "YaRN",
        "Resonance YaRN",
        "YaRN, fine-tuned",
        "Resonance YaRN, fine-tuned",
    ]
    assert [row["encoding"] for row in result["table"]] == labels
    longest = {row["encoding"]: row["64"] for row in result["table"]}
    assert longest["YaRN, fine-tuned"] < 0.7 * longest["RoPE"]
    pairs = {(row["encoding"], row["minus"]): row["verdict"] for row in result["differences"]}
    assert (
        pairs["YaRN, fine-tuned", "YaRN"] == pairs["YaRN, fine-tuned", "RoPE"] == "one training: no verdict"
    )
    assert ("Resonance YaRN, fine-tuned", "YaRN, fine-tuned") in pairs
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    for part in ("yarn", "resonance-yarn"):
        assert interop.load_hf(folder / part / "hf").params["embed"].shape == base.params["embed"].shape
        assert len((folder / part / "metrics.jsonl").read_text().splitlines()) == 12
    assert guarded(run, config) == 0 and "Differences at 64" in capsys.readouterr().out


def test_seeds_are_trained_each_by_itself_and_compared_in_pairs(
    given, from_scratch, tmp_path, capsys, monkeypatch
):
    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{chr(97 + number)}bcdefgh" * 40)
    changes = dict(checkpoint=None, from_scratch=str(from_scratch), compare=True, steps=3, lr=1e-2, micro=0)
    where = dict(corpus=str(tmp_path / "text"), run_dir=str(tmp_path / "run"), cache_dir=None, documents=2)
    config = config_of(given, **changes, **where, seeds=(3, 7))
    assert guarded(run, config) == 0
    out = capsys.readouterr().out
    assert "seed 7 (2 of 2)" in out and "paired by seed" in out
    result, tuned = read_json(tmp_path / "run" / "seeds.json"), "Resonance YaRN, fine-tuned"
    assert result["seeds"] == [3, 7] and (tmp_path / "run" / "seeds.png").read_bytes()[:4] == b"\x89PNG"
    gaps, alone = [], []
    for seed in (3, 7):
        one = read_json(tmp_path / "run" / f"seed-{seed}" / "finetune.json")
        nll = {row["encoding"]: math.log(row["perplexity"]) for row in one["rows"] if row["length"] == 64}
        gaps.append(nll[tuned] - nll["YaRN, fine-tuned"])
        alone.append(one["runs"])
    assert alone[0] != alone[1]  # another order of the rows
    row = next(
        row for row in result["differences"] if (row["encoding"], row["minus"]) == (tuned, "YaRN, fine-tuned")
    )
    assert row["trainings"] == 2 and row["difference"] == pytest.approx(np.mean(gaps), abs=1e-12)
    assert row["low"] < min(gaps) < max(gaps) < row["high"] and "no verdict" not in row["verdict"]
    # Nothing is trained again.
    monkeypatch.setattr(train, "fit", None)
    assert guarded(run, config) == 0
    for wrong, sentence in (
        ({"compare": False}, "--seeds repeats a comparison; give --compare"),
        ({"seeds": (1, 1)}, "--seeds must be each once; got 1 1"),
    ):
        assert guarded(run, with_options(config, **wrong, run_dir=str(tmp_path / "other"))) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_comparison_is_for_one_host(given, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="--compare is for one host"):
        gather(config_of(given, compare=True))


def test_without_such_a_run_it_trains_a_base_and_says_so(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model.PRESETS, "tiny", SHAPE)
    own = dict(
        checkpoint=None, from_scratch="default", shape="tiny", pretrain_steps=2, steps=2, lora=True, micro=0
    )
    assert guarded(run, config_of(given, **own, run_dir="run")) == 0
    out = capsys.readouterr().out
    assert (
        "no finished experiments.from_scratch in runs/from_scratch-" in out
        and "base: tiny, trained for 2 steps" in out
    )
    assert (tmp_path / "run" / "base" / "config.json").exists()


def test_everything_it_writes_goes_to_an_object_store(given, tmp_path, monkeypatch, capsys):
    """All but checkpoints, which Orbax writes through its own driver."""
    monkeypatch.chdir(tmp_path)
    where = dict(run_dir="gs://b/run", checkpoint_dir=str(tmp_path / "c"), cache_dir=None)
    config = config_of(given, **where, steps=4, micro=0, profile=1)
    with bucket(tmp_path / "store") as written:
        assert guarded(run, config) == 0
        assert guarded(run, config) == 0  # finished
        assert guarded(run, with_options(config, lr=0.5)) == 2
    assert "gs://b/run/loss.png" in capsys.readouterr().out
    names = {url.removeprefix("gs://b/run/") for url in written}
    files = {"config.json", "encodings.json", "metrics.jsonl", "metrics.csv", "loss.png", "finetune.json"}
    assert files | {"hf/config.json", "hf/model.safetensors"} <= names
    assert any(name.startswith("profile/") for name in names)
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert len(left) == 1 and left.pop().endswith("-local")
    assert interop.load_hf(tmp_path / "store" / "b" / "run" / "hf").config.n_layers == 2


def test_what_resume_allows(given, whole, tmp_path, capsys):
    fresh, done = dict(run_dir=str(tmp_path / "new")), dict(run_dir=str(whole), profile=2)
    assert guarded(run, config_of(given, resume="must", **fresh)) == 2
    assert "holds no checkpoint and resume is must" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert guarded(run, config_of(given, resume="must", **done)) == 0
    assert guarded(run, config_of(given, resume="never", **done)) == 2
    assert f"holds a checkpoint of step {STEPS} and resume is never" in capsys.readouterr().err
    assert guarded(run, config_of(given, resume="perhaps", **fresh)) == 2


def test_sigterm_before_the_training_exits_130(given, tmp_path):
    process = start(*options({**given, "run_dir": tmp_path / "run"}))
    line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert line.startswith("device: ") and code == 130, err
    assert err.strip() == "interrupted; run the same command again to go on."
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_full_disk_is_said_before_anything_is_written(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert guarded(run, config_of(given, micro=0, run_dir=str(tmp_path / "run"))) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "a checkpoint takes" in first and "but only 0 MiB are free in" in first
    assert second == "Free some disk space and run the same command again to go on."
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_every_option_has_its_name_and_keeps_it(whole):
    """What nests has short names, on the command line and in config.json; each occurs once."""
    stated, options = read_json(whole / "config.json"), options_of(CPU)
    assert {"lr", "beta1", "lora", "lora_rank", "pretrain_steps", "corpus", "fsdp", "data"} <= options.keys()
    assert stated.keys() == {"study", *options} - {"run_dir"}
    assert stated["lr"] == 1e-3 and stated["pretrain_steps"] == 600 and stated["length"] == 64
    _, help, _ = finish(start("cpu", "--help"))
    assert [name for name in options if f"--{name.replace('_', '-')} " not in help.replace(",", " ")] == []


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
    "no such slice": (dict(compile="abacus:2x2"), "there is no slice 'abacus:2x2'"),
    "another precision": (dict(precision="highest"), "--precision must be one of auto, float32"),
    "slices of nothing": (dict(compile="v5p:2x2x1", slices=0), "--slices must be"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(given, whole, tmp_path, name, capsys):
    changes, sentence = MISTAKES[name]
    folder = whole if name == "other settings" else tmp_path / "run"
    assert guarded(run, config_of(given, **changes, run_dir=str(folder))) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1
