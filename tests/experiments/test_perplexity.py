"""The perplexity study as its user runs it: a checkpoint directory in, the figure out, killed on the way."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from resonance_jax import interop, model, rope
from resonance_jax.files import read_json
from resonance_jax.parallel import distributed
from tests.fast_compile import FAST_COMPILE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    """A small checkpoint with a byte vocabulary and five documents of about 600 bytes."""
    folder = tmp_path_factory.mktemp("inputs")
    config = model.PRESETS["tiny"].replace(d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48)
    lm = model.Decoder(config, jax.random.key(0))
    interop.save_hf(lm, folder / "small", rope=rope.RopeSpec(head_dim=16, train_length=32))
    source = Path(model.__file__).read_text() * 3
    (folder / "texts").mkdir()
    for i in range(5):
        (folder / "texts" / f"{i}.txt").write_text(source[i * 40 : i * 40 + 600])
    return {"checkpoint": f"small={folder / 'small'}", "corpus": str(folder / "texts")}


def start(inputs: dict[str, str], folder: Path, *more: str, **variables: str) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "experiments.perplexity", "sweep", "--checkpoints", inputs["checkpoint"]),
        *("--corpora", inputs["corpus"], "--tokenizer", "bytes", "--split", "all"),
        *("--lengths", "32", "64", "128", "--scale", "4", "--run-dir", str(folder)),
        *("--encodings", "own", "dynamic_ntk", "resonance-dynamic_ntk", "yarn", "resonance-yarn", *more),
    ]
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE, **variables}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.mark.full
def test_two_processes_score_as_one(inputs, tmp_path):
    """Over a mesh that spans them: one result, one writer, one voice; without a mesh they refuse."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def both(*more: str) -> list[tuple[int, str, str]]:
        own = lambda number: dict(
            zip(distributed.VARIABLES, (f"localhost:{port}", "2", str(number)), strict=True)
        )
        running = [start(inputs, tmp_path / "both", *more, **own(number)) for number in range(2)]
        return [finish(process) for process in running]

    assert [code for code, _, _ in both()] == [2, 2]
    (code, out, err), (other, silent, more) = both("--parallel", "mesh", "--data", "2")
    assert (code, other) == (0, 0), err + more
    assert "Paired differences" in out and all(line.startswith("[Gloo]") for line in silent.splitlines())
    code, _, err = finish(start(inputs, tmp_path / "one"))
    assert code == 0, err
    rows = [
        read_json(tmp_path / name / "perplexity.json")["corpora"][inputs["corpus"]]["rows"]
        for name in ("one", "both")
    ]
    assert [row["tokens"] for row in rows[0]] == [row["tokens"] for row in rows[1]]
    np.testing.assert_allclose(*([row["perplexity"] for row in some] for some in rows), rtol=1e-5)


@pytest.mark.full
def test_a_killed_sweep_ends_in_the_same_table_without_repeating_documents(inputs, tmp_path):
    sliding = ("--protocol", "sliding", "--stride", "16")
    code, out, err = finish(start(inputs, tmp_path / "whole", *sliding))
    assert code == 0, err
    assert "Resonance YaRN" in out and "RoPE (own)" in out and "Paired differences" in out
    process = start(inputs, tmp_path / "killed", *sliding)
    stored = lambda: sorted((tmp_path / "killed" / "nll").rglob("0*.npz"))
    while len(stored()) < 7 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    done = {path: path.stat().st_mtime_ns for path in stored()}
    assert 7 <= len(done) < 25
    code, _, err = finish(start(inputs, tmp_path / "killed", *sliding))
    assert code == 0, err
    assert len(stored()) == 25 and all(path.stat().st_mtime_ns == when for path, when in done.items())
    results = [read_json(tmp_path / name / "perplexity.json") for name in ("whole", "killed")]
    assert results[0] == results[1]
    rows = results[0]["corpora"][inputs["corpus"]]["rows"]
    assert len(rows) == 15 and {row["documents"] for row in rows} == {5}
    assert all(np.isfinite(row["perplexity"]) and row["stride"] == 16 for row in rows)
    work = results[0]["corpora"][inputs["corpus"]]["work"]
    assert work["computed"] > work["scored"] == sum(row["tokens"] for row in rows)
    assert f"tokens computed: {work['computed']:,} for {work['scored']:,} scored" in out
    bins = list(csv.DictReader((tmp_path / "whole" / "positions.csv").open()))
    assert sum(int(row["tokens"]) for row in bins) == sum(r["tokens"] for r in rows if r["length"] == 128)
    assert {row["from_position"] for row in bins} == {"0", "64"}
    assert (tmp_path / "whole" / "perplexity.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--encodings", "yarn@other"], "names no checkpoint"),
        (["--encodings", "yam"], "unknown encoding 'yam'"),
        (["--protocol", "windows"], "unknown protocol 'windows'"),
        (["--lengths", "5000"], "none of its 5 documents has the 4,999 tokens"),
        (["--min-tokens", "5000"], "none of its 5 documents has the 5,000 tokens"),
        (["--checkpoints", "/nowhere/at/all"], "is not a directory"),
    ],
)
def test_bad_input_is_one_sentence(inputs, tmp_path, arguments, sentence):
    code, _, err = finish(start(inputs, tmp_path / "run", *arguments))
    assert code == 2 and sentence in err and "Traceback" not in err, err
