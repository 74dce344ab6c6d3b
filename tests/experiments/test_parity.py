"""The parity command: its verdict is its exit code, what it writes is complete, a mistake is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.parity import Config
from experiments import parity

ROOT = Path(__file__).parents[2]


def test_against_goldens_needs_no_torch(tmp_path, monkeypatch, capsys):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    assert parity.run(Config(against="goldens", run_dir=str(tmp_path / "run"))) == 0
    result = json.loads((tmp_path / "run" / "parity.json").read_text())
    assert result["ok"] and len(result["tensors"]) == 356
    assert (tmp_path / "run" / "parity.csv").read_text().count("\n") == 357
    assert "356 tensors agree" in capsys.readouterr().out


@pytest.mark.parity
def test_a_random_checkpoint_and_a_wrong_copy_of_it(tmp_path, capsys):
    common = {"dtypes": ("float64",), "positions": (48,), "encodings": ("own", "resonance-ntk")}
    assert parity.run(Config(run_dir=str(tmp_path / "right"), **common)) == 0
    picture = (tmp_path / "right" / "parity.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and len(picture) > 20_000

    original = tmp_path / "right" / "checkpoint"
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.safetensors").symlink_to(original / "model.safetensors")
    stated = (original / "config.json").read_text()
    (copy / "config.json").write_text(stated.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    config = Config(str(copy), str(original), run_dir=str(tmp_path / "wrong"), **common)
    assert parity.run(config) == 1
    assert "the first wrong one is layer 0 q (YaRN, 48 positions, float64)" in capsys.readouterr().out
    assert not json.loads((tmp_path / "wrong" / "parity.json").read_text())["ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere is not a directory"),
        (["--lengths", "-1"], "must be positive"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "experiments.parity", "--run-dir", str(tmp_path / "run"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
