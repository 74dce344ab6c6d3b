"""The quickstart, as its user runs it: figures as they come, killed and resumed, mistakes in one sentence."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.quickstart import Config
from experiments import quickstart
from resonance_jax import data, evaluate, interop, model, rope
from resonance_jax.command import guarded
from resonance_jax.files import read_json
from resonance_jax.interop.named_checkpoints import located
from tests.data.small_tokenizers import byte_level

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """A small checkpoint with a tokenizer of its own, trained at 32, to 128."""
    folder = tmp_path_factory.mktemp("inputs") / "small"
    shape = model.PRESETS["tiny"].replace(
        vocab_size=259, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48
    )
    lm = model.Decoder(shape, jax.random.key(0))
    interop.save_hf(lm, folder, rope=rope.RopeSpec(head_dim=16, train_length=32), length=32)
    byte_level(folder, ("<s>",))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return Config(checkpoint=str(folder), length=128, every=32, scale=4.0)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert guarded(quickstart.run, dataclasses.replace(config, run_dir=str(folder))) == 0
    return folder


def test_it_writes_everything_it_promises(finished):
    result = read_json(finished / "quickstart.json")
    assert result["first"]["document"] == "news-from-nowhere" and len(result["all"]["documents"]) == 3
    labels = [line["encoding"] for line in result["first"]["table"]]
    assert labels == ["RoPE", "YaRN", "Resonance YaRN", "NTK", "Dynamic NTK"]
    assert [line["encoding"] for line in result["all"]["table"]] == labels[:3]
    assert all(row["verdict"] == "one document: no verdict" for row in result["first"]["differences"])
    assert all(row["95 % interval"] for row in result["all"]["differences"])
    rows = list(csv.DictReader((finished / "perplexity.csv").open()))
    assert len(rows) == 4 * 4 + 1 + 2 * 3 * 4
    for name in ("perplexity.png", "documents.png"):
        assert (finished / name).read_bytes()[:4] == b"\x89PNG"
    report = (finished / "report.md").read_text()
    assert "no interval, no verdict" in report and "Resonance YaRN" in report


def test_its_figures_are_those_of_a_forward(config, finished):
    """RoPE and YaRN on the first passage, by the mean NLL of a plain forward at each length."""
    checkpoint = interop.open_checkpoint(config.checkpoint)
    tokenizer, lm = checkpoint.tokenizer(), interop.load_hf(config.checkpoint)
    text = next(iter(data.corpus("passages"))).text
    ids = tokenizer.encode(text)[: config.length - (tokenizer.bos_id is not None)]
    ids = np.concatenate([[] if tokenizer.bos_id is None else [tokenizer.bos_id], ids]).astype(np.int32)
    specs = {"RoPE": checkpoint.rope, "YaRN": rope.restate(checkpoint.rope, "yarn", scale=config.scale)}
    table = {line["encoding"]: line for line in read_json(finished / "quickstart.json")["first"]["table"]}
    for label, spec in specs.items():
        nll = np.asarray(evaluate.token_nll(lm, ids[None], rope.frequencies(spec, length=128)))[0]
        for n in (32, 128):
            assert table[label][f"{n}"] == pytest.approx(np.exp(nll[: n - 1].mean()), rel=1e-5)


def test_killed_it_goes_on_to_the_same_figures(config, finished, tmp_path, capsys):
    changed = dataclasses.replace(config, run_dir=str(tmp_path / "run"))
    options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(changed)]
    values = [str(getattr(changed, field.name)) for field in dataclasses.fields(changed)]
    command = [sys.executable, "-m", "experiments.quickstart"]
    command += [part for pair in zip(options, values, strict=True) for part in pair]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )
    stored = lambda: sorted((tmp_path / "run").glob("nll/*/0*.npz"))
    while process.poll() is None and len(stored()) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in stored()}
    assert 2 <= len(done) < 11
    assert guarded(quickstart.run, changed) == 0
    out = capsys.readouterr().out
    assert "news-from-nowhere, RoPE: perplexity to" in out and "scored 11/11" in out
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    results = [read_json(folder / "quickstart.json") for folder in (tmp_path / "run", finished)]
    assert results[0]["first"] == results[1]["first"] and results[0]["all"] == results[1]["all"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"length": 0}, "--every must be at most --length, got 32 and 0"),
        ({"every": 1}, "--every must be at least 2"),
        ({"documents": 0}, "--documents must be at least 1"),
        ({"scale": 0.0}, "--scale must be at least 1"),
        ({"corpus": "nowhere/at/all"}, "There is no file or folder 'nowhere/at/all'"),
        ({"checkpoint": "nowhere"}, "nowhere"),
        ({"length": 10**6}, "none of its 3 documents has the"),
    ],
)
def test_mistakes_are_one_sentence(config, tmp_path, capsys, changes, sentence):
    asked = dataclasses.replace(config, run_dir=str(tmp_path / "run"), **changes)
    assert guarded(quickstart.run, asked) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_passage_that_was_changed_is_refused(monkeypatch):
    from resonance_jax.data import passages

    other = dataclasses.replace(passages.PASSAGES[0], sha256="0" * 64)
    monkeypatch.setattr(passages, "PASSAGES", (other,))
    with pytest.raises(ValueError, match=r"the passage news-from-nowhere .* was changed"):
        list(passages.passages())


def test_the_passages_fill_the_longest_context_of_the_real_model():
    try:
        located("smollm2-135m")
    except ValueError as error:
        pytest.skip(str(error))
    tokenizer = interop.open_checkpoint("smollm2-135m").tokenizer()
    for document in data.corpus("passages"):
        assert len(tokenizer.encode(document.text)) >= Config().length, document.name
