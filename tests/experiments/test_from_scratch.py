"""Training from scratch, as its user runs it: end to end, killed and resumed, mistakes in one sentence."""

import csv
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from resonance_jax.files import read_json
from tests.fast_compile import FAST_COMPILE

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--train-length", "32", "--length", "128", "--d-model", "32", "--head-dim", "16", "--n-layers", "1"),
    *("--steps", "12", "--batch-size", "4", "--finetune-steps", "4", "--documents", "6"),
    *("--seeds", "0", "1"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Thirty short modules of the standard library, as a folder of text."""
    folder = tmp_path_factory.mktemp("corpus")
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:30]
    for module in modules:
        (folder / module.with_suffix(".txt").name).write_text(module.read_text()[:3000])
    return folder


def start(*arguments: str, shell_prefix: str = "") -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE}
    command = [sys.executable, "-m", "experiments.from_scratch", *arguments]
    if shell_prefix:
        command = ["bash", "-c", f'{shell_prefix}; exec "$0" "$@"', *command]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = finish(start(*SMALL, "--corpus", str(corpus), "--run-dir", str(folder)))
    assert code == 0, err
    assert "Resonance YaRN, swapped in without training" in out and "device:" in out
    return folder


def test_it_writes_everything_it_promises(finished):
    result = read_json(finished / "perplexity.json")
    rows = list(csv.DictReader((finished / "perplexity.csv").open()))
    assert len(rows) == len(result["rows"]) == 13 * 4 * 2
    gaps = result["differences"]
    assert all(row["trainings"] == 2 and row["low"] < row["difference"] < row["high"] for row in gaps)
    assert {line["encoding"] for line in result["table"]} == {row["encoding"] for row in rows}
    for row in result["rows"]:
        assert 1 < row["low"] <= row["perplexity"] <= row["high"] < 1000
        assert row["protocol"] == "prefix" and row["bos"] == 256
        assert row["tokens"] == row["windows"] * (row["length"] - 1) and row["documents"] <= 6
    assert len({row["windows"] for row in result["rows"]}) == 1
    encodings = read_json(finished / "encodings.json", list)
    assert len(encodings) == 10 and all(e["spec"]["head_dim"] == 16 for e in encodings)
    assert (finished / "perplexity.png").read_bytes()[:4] == b"\x89PNG"
    report = (finished / "report.md").read_text()
    assert "1.5 rad over 32 positions" in report and "Resonance RoPE" in report
    assert len(result["corpus"]["train"]["fingerprint"]) == 40
    at = {(r["encoding"], r["length"]): r["perplexity"] for r in result["rows"] if r["training"] == 0}
    assert at["Dynamic NTK", 32] == pytest.approx(at["RoPE", 32], rel=1e-6)
    assert at["Dynamic NTK", 128] != pytest.approx(at["RoPE", 128], rel=1e-6)


def test_a_finished_run_prints_its_table_at_once(corpus, finished):
    began = time.monotonic()
    code, out, _ = finish(start(*SMALL, "--corpus", str(corpus), "--run-dir", str(finished)))
    assert code == 0 and "YaRN, fine-tuned" in out and time.monotonic() - began < 5


@pytest.mark.full
def test_killed_and_interrupted_it_goes_on_to_the_same_figures(corpus, finished, tmp_path):
    folder = tmp_path / "run"
    arguments = [*SMALL, "--corpus", str(corpus), "--run-dir", str(folder)]
    for path, number, code in (
        (folder / "train" / "metrics.jsonl", signal.SIGINT, 130),
        (folder / "fine-tune" / "metrics.jsonl", signal.SIGKILL, -9),
    ):
        process = start(*arguments)
        while process.poll() is None and not (path.exists() and path.stat().st_size):
            time.sleep(0.01)
        process.send_signal(number)
        returned, _, err = finish(process)
        assert returned in (code, 0), err
        assert "Traceback" not in err
    code, _, err = finish(start(*arguments))
    assert code == 0, err
    for part in ("rows", "differences", "corpus"):
        assert read_json(folder / "perplexity.json")[part] == read_json(finished / "perplexity.json")[part]


def mistake(*arguments: str, shell_prefix: str = "") -> str:
    code, _, err = finish(start(*arguments, shell_prefix=shell_prefix))
    assert code == 2, err
    assert "Traceback" not in err
    return err


def test_another_config_is_refused(corpus, finished):
    err = mistake(*SMALL, "--lr", "0.5", "--corpus", str(corpus), "--run-dir", str(finished))
    assert "holds a run of another config (lr: 0.003 there, 0.5 here); choose another --run-dir" in err


def test_other_text_is_refused(corpus, finished, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    for name in ("config.json", "corpus.json"):
        text = (finished / name).read_text().replace('"bytes": ', '"bytes": 1')
        (other / name).write_text(text)
    err = mistake(*SMALL, "--corpus", str(corpus), "--run-dir", str(other))
    assert "the text has changed since the run" in err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.txt", None, "missing.txt"),
        ("empty.txt", b"", "empty"),
        ("latin.txt", "né".encode("latin-1") * 3000, "UTF-8"),
        ("short.txt", b"far too short\n" * 3, "needs"),
    ],
)
def test_a_corpus_that_cannot_be_used(tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    err = mistake(*SMALL, "--corpus", str(path), "--run-dir", str(tmp_path / "run"))
    assert sentence in err and len(err.strip().splitlines()) <= 2


def test_unknown_option_and_bad_number():
    assert "--trian-length" in mistake("--trian-length", "32")
    assert "fast" in mistake("--lr", "fast")


@pytest.mark.full
def test_a_full_disk_is_said_and_loses_nothing(corpus, tmp_path):
    """A limit on file size stands for the full disk: the write fails, the run resumes once there is room."""
    folder = tmp_path / "run"
    arguments = [*SMALL, "--corpus", str(corpus), "--run-dir", str(folder)]
    assert "The token file" in mistake(*arguments, shell_prefix="ulimit -f 24")
    # Orbax's other writers may print that their event loop is closed beside our sentence: not looked at here.
    code, _, err = finish(start(*arguments, shell_prefix="ulimit -f 200"))
    assert code == 2 and "a checkpoint could not be written" in err
    assert finish(start(*arguments))[0] == 0
