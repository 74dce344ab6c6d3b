"""PosGen, as its user runs it: end to end, killed and resumed, and every mistake in one sentence."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.posgen import PRESETS
from experiments import posgen
from experiments.posgen.study import MLP, Study
from resonance_jax import train
from resonance_jax.command import guarded
from resonance_jax.files import read_json
from resonance_jax.parallel import memory

ROOT = Path(__file__).resolve().parents[2]
TINY = dataclasses.replace(
    PRESETS["smoke"][1],
    tasks=("cot", "semi_recursive"),
    encodings=("rope", "resonance-rope", "resonance-yarn", "llama3"),
    train_length=12,
    length=32,
    train_rows=40,
    val_rows=6,
    test_rows=5,
    d_model=16,
    head_dim=8,
    d_ff=16,
    n_layers=1,
    epochs=4,
    batch_size=16,
    micro=0,
    save_seconds=0.0,
)


def options(config) -> list[str]:
    """The command line that says what differs from the preset."""
    default, out = PRESETS["smoke"][1], ["smoke"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name):
            values = value if isinstance(value, tuple) else [value]
            out += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return out


def start(config) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.posgen", *options(config)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = dataclasses.replace(TINY, run_dir=str(folder))
    assert guarded(posgen.run, config) == 0
    return config, folder


def test_it_writes_everything_it_promises(finished):
    _, folder = finished
    result = read_json(folder / "table1.json")
    rows = list(csv.DictReader((folder / "table1.csv").open()))
    assert len(rows) == len(result["rows"]) == 2 * 2 * 4
    for row in result["rows"]:
        assert row["seeds"] == 2 and 0 <= row["ood_mean"] <= 100 and 0 <= row["id_mean"] <= 100
        assert (row["paper_ood"] is None) == (row["encoding"] == "Llama 3")
    assert {row["task"]: round(row["ceiling_ood"], 1) for row in result["rows"]} == {
        "cot": 100.0,
        "semi_recursive": 52.9,
    }
    assert {gap["encoding"] for gap in result["differences"]} == {"Resonance RoPE"}  # YaRN is not there
    assert result["tasks"]["cot"]["trainings"] == 4 and result["tasks"]["cot"]["run_steps_per_second"] > 0
    encodings = read_json(folder / "encodings.json", list)
    assert [e["encoding"] for e in encodings] == ["RoPE", "Resonance RoPE", "Resonance YaRN", "Llama 3"]
    assert encodings[2]["trained"]["fingerprint"] == encodings[1]["evaluated"]["fingerprint"]
    residues = list(csv.DictReader((folder / "residues.csv").open()))
    assert {row["wavelength"] for row in residues} == {"6"}  # the whole ones up to 12 of a head of 8
    seen = sum(int(r["tokens"]) for r in residues if (r["task"], r["encoding"]) == ("cot", "RoPE"))
    assert seen == 32 - 12
    assert {row["encoding"] for row in result["by residue"]} == {
        "RoPE",
        "Resonance RoPE",
        "Resonance YaRN",
        "Llama 3",
    }
    for name in ("accuracy_by_position.png", "validation_loss.png", "residues.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    text = (folder / "table1.md").read_text()
    assert "ceiling of the shortcut" in text and "(the release's rule)" in text and "last epoch" in text
    one = read_json(folder / "cot" / "result.json")
    assert one["epochs"] == [1, 2, 3, 4] and len(one["curves"]["Llama 3"]) == 2
    assert len(one["curves"]["RoPE"][0]["by_position"]["best"]) == 32 - 4
    # Another table on the same weights, another score; another seed, other weights.
    losses = [one["curves"][title][seed]["val_loss"] for title in ("RoPE", "Llama 3") for seed in (0, 1)]
    assert len({tuple(loss) for loss in losses}) == 4


def test_a_finished_run_prints_its_table_without_training(finished, monkeypatch, capsys):
    monkeypatch.setattr(train, "fit_many", None)
    assert guarded(posgen.run, finished[0]) == 0
    assert "Resonance YaRN" in capsys.readouterr().out


def test_tasks_already_there_are_not_done_again(finished, tmp_path, monkeypatch):
    """A folder with nothing but a task's result.json goes on from there: pieces on other machines."""
    config, folder = finished
    for task in config.tasks:
        (tmp_path / "run" / task).mkdir(parents=True)
        (tmp_path / "run" / task / "result.json").write_bytes((folder / task / "result.json").read_bytes())
    (tmp_path / "run" / "config.json").write_bytes((folder / "config.json").read_bytes())
    monkeypatch.setattr(train, "fit_many", None)
    assert guarded(posgen.run, dataclasses.replace(config, run_dir=str(tmp_path / "run"))) == 0
    assert read_json(tmp_path / "run" / "table1.json") == read_json(folder / "table1.json")


@pytest.mark.full
def test_killed_it_goes_on_to_the_same_figures_bitwise(finished, tmp_path):
    config = dataclasses.replace(TINY, run_dir=str(tmp_path / "run"))
    process, log = start(config), tmp_path / "run" / "cot" / "metrics.jsonl"
    checkpoints = log.parent / "checkpoints"
    saved = lambda: checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())
    while process.poll() is None and not saved():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -9, err
    assert saved() and not (log.parent / "result.json").exists()
    process = start(config)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "device: " in out and "run-steps/s" in out
    again, whole = (read_json(folder / "table1.json") for folder in (tmp_path / "run", finished[1]))
    assert again["rows"] == whole["rows"] and again["differences"] == whole["differences"]


def test_a_plan_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert guarded(posgen.run, dataclasses.replace(TINY, plan=True)) == 0
    out = capsys.readouterr().out
    assert "a step of 4 runs takes" in out and "for each of the --seeds" in out
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverged_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    """Its seed counts nowhere; the other seed of the same encoding does."""
    fit_many = train.fit_many

    def one_fails(*args, **options):
        trained = fit_many(*args, **options)
        trained.failed[0] = 3  # RoPE and what it is swapped for, first seed
        return trained

    monkeypatch.setattr(train, "fit_many", one_fails)
    config = dataclasses.replace(TINY, tasks=("cot",), seeds=(0, 1), run_dir=str(tmp_path / "run"))
    assert guarded(posgen.run, config) == 3
    assert "cot: RoPE, seed 0, is left out: its training diverged in step 3." in capsys.readouterr().out
    rows = {r["encoding"]: r["seeds"] for r in read_json(tmp_path / "run" / "table1.json")["rows"]}
    assert rows["RoPE"] == 1 and rows["Resonance RoPE"] == 2
    kept = read_json(tmp_path / "run" / "cot" / "result.json")["curves"]
    assert kept["RoPE"][0] is None and kept["RoPE"][1] is not None


def test_protocols_train_what_they_say():
    study = lambda **changes: Study(dataclasses.replace(PRESETS["table1"][1], **changes))
    release, paper = study(protocol="release"), study(protocol="paper")
    assert release.training.optimizer.freeze == MLP and not paper.training.optimizer.freeze
    assert release.training.steps == 79 * 150 and len(release.runs) == 2 * 5 and len(paper.runs) == 4 * 5
    assert (release.shape.d_model, release.shape.n_layers, release.shape.attention_scale) == (512, 2, 1.0)
    assert study(n_layers=6).shape.n_layers == 6
    assert release.training.optimizer.schedule == "onecycle" and release.training.optimizer.beta2 == 0.999


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_length": 4}, "expected far + near < train_length < length, got 1 + 3, 4, 32"),
        ({"length": 12}, "expected far + near < train_length < length"),
        ({"modulus": 1}, "modulus must be at least 2"),
        ({"modulus": 3, "hash": "permuted_sum"}, "at least 2, and 4 for permuted_sum"),
        ({"far": 0}, "at least one far and one near token"),
        ({"modulus": 2}, "There are 16 different PosGen seeds"),
        ({"encodings": ("rope", "yarm")}, "unknown encoding 'yarm'; expected one of rope, linear"),
        ({"encodings": ("longrope",)}, "longrope needs long_factor: 4 positive numbers"),
        ({"encodings": ("rope", "default")}, "an encoding is named twice in rope default"),
        ({"seeds": (1, 1)}, "--seeds must be at least one, each once; got 1 1"),
        ({"tasks": ()}, "--tasks must be at least one"),
        ({"batch_size": 0}, "--batch-size must be a whole number of at least 1, got 0"),
        ({"batch_size": 16, "micro": 5}, "16 rows cannot be cut in micro-batches of 5"),
        ({"head_dim": 7}, "the rotary size must be even"),
        ({"d_model": 0}, "d_model must be a positive whole number"),
    ],
)
def test_mistakes_are_one_sentence(changes, sentence, tmp_path, capsys):
    config = dataclasses.replace(TINY, run_dir=str(tmp_path / "run"), **changes)
    assert guarded(posgen.run, config) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("table1*"))


def test_more_runs_than_memory_holds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda devices: 1024)
    assert guarded(posgen.run, dataclasses.replace(TINY, run_dir=str(tmp_path / "run"))) == 2
    assert "4 runs at once need" in capsys.readouterr().err


def test_the_command_line_refuses_what_it_does_not_know():
    command = [sys.executable, "-m", "experiments.posgen", "cpu", "--protocol", "published"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=os.environ)
    assert done.returncode == 2 and "published" in done.stderr + done.stdout
