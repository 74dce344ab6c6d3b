"""The paper as one command, on random weights: every stage by its own command line, stopped and resumed."""

import csv
import dataclasses
import itertools
import json
import runpy
import signal
import sys
from pathlib import Path

import jax
import pytest

from configs.paper import Config
from experiments import paper
from experiments.paper.stages import stages
from resonance_jax import interop, model, rope
from resonance_jax.command import command_line, guarded
from resonance_jax.files import read_json
from resonance_jax.report.leval import PAPER

SHAPE = model.PRESETS["tiny"].replace(d_model=16, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=16, d_ff=16)
ROWS = [row for row in PAPER if row.startswith("7b-")]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """A checkpoint, twelve texts and one question; all that the presets say beside is made small."""
    folder = tmp_path_factory.mktemp("paper")
    lm = model.Decoder(SHAPE, jax.random.key(0))
    interop.save_hf(lm, folder / "chat", rope=rope.RopeSpec(head_dim=16, train_length=32), length=32)
    for name in ("text", "leval"):
        (folder / name).mkdir()
    for number in range(12):
        (folder / "text" / f"{number}.txt").write_text("abcdefgh" * 60)
    asked = {
        "instructions": ["Which one? "],
        "outputs": ["A"],
        "input": "The ship sailed at 7.",
        "source": "ours",
    }
    (folder / "leval" / "tpo.jsonl").write_text(json.dumps({**asked, "evaluation": "exam"}) + "\n")
    common = "tokenizer=bytes", "dtype=float32"
    return Config(
        checkpoint=str(folder / "chat"),
        corpus=str(folder / "text"),
        corpora=(str(folder / "text"),),
        leval=str(folder / "leval"),
        finetune=("steps=2", "length=64", "batch_size=8", "mode=split", "rule=auto", *common),
        figure4=("lengths=(32, 64)", "min_tokens=0", "documents=2", *common),
        table2=("tasks=('tpo',)", "context=1k", "max_new_tokens=2", *common),
        run_dir=str(folder / "run"),
    )


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The command lines that were run, each in this process as `python -m` runs it."""
    found = []

    def run_here(words: list[str]) -> int:
        found.append(words)
        monkeypatch.setattr(sys, "argv", words[2:])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(words[2], run_name="__main__")
        return end.value.code

    monkeypatch.setattr(command_line, "leave", sys.exit)
    monkeypatch.setattr(paper, "run_command", run_here)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield found
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_whole_is_run_stopped_and_resumed(config, commands, monkeypatch, capsys):
    run_here, folder = paper.run_command, Path(config.run_dir)
    stop = lambda words: 130 if words[2] == "experiments.perplexity" else run_here(words)
    monkeypatch.setattr(paper, "run_command", stop)
    assert guarded(paper.run, config) == 130
    assert "figure4, figure4-llama2-7b, ended with 130; the same command goes on" in capsys.readouterr().out
    tuned = ["7b-long-yarn", "7b-long-resonance", "7b-short-yarn", "7b-short-resonance"]
    assert [words[3] for words in commands] == tuned and not (folder / "figure4").exists()
    logs = {name: folder / "finetune" / name / "metrics.jsonl" for name in tuned}
    before = {name: path.stat().st_mtime_ns for name, path in logs.items()}
    monkeypatch.setattr(paper, "run_command", run_here)
    assert guarded(paper.run, config) == 0
    out = capsys.readouterr().out
    assert {name: path.stat().st_mtime_ns for name, path in logs.items()} == before
    assert [words[3] for words in commands[4:]] == [*tuned, "figure4-llama2-7b", *ROWS]
    assert f"[5 of 11] {sys.executable} -m experiments.perplexity figure4-llama2-7b" in out
    for name in tuned:
        spec = read_json(folder / "finetune" / name / "encodings.json", list)[0]["spec"]
        assert spec["method"] == "yarn" and spec["resonance"] == name.endswith("resonance")
    (figure,) = read_json(folder / "figure4" / "perplexity.json")["corpora"].values()
    labels = {row["encoding"] for row in figure["rows"]}
    assert labels == {"Dynamic NTK, chat", "NTK, chat", "YaRN, yarn", "Resonance YaRN, resonance"}
    asked = {row: read_json(folder / "table2" / row / "leval.json") for row in ROWS}
    where = {row: Path(found["checkpoint"]) for row, found in asked.items()}
    assert where.pop("7b-ntk") == where.pop("7b-dynamic-ntk") == Path(config.checkpoint)
    assert where == {row: folder / "finetune" / row / "hf" for row in tuned}
    table = list(csv.DictReader((folder / "table2.csv").open()))
    assert [row[""] for row in table[::4]] == ROWS
    assert [row[""] for row in table[2::4]] == [f"paper, {row}" for row in ROWS]
    assert str(folder / "figure4" / "perplexity.png") in out


def test_a_stage_that_fails_ends_the_run_and_what_was_left_out_is_remembered(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, run_dir=str(tmp_path / "run"), parts=("figure4", "table2"))
    codes = [3, 0, 0, 0, 0, 0, 0]
    monkeypatch.setattr(paper, "run_command", lambda words: codes.pop(0))
    assert guarded(paper.run, config) == 3 and not codes
    for code, end in ((2, 2), (70, 70), (-9, 130)):
        codes = [0, code]
        assert guarded(paper.run, config) == end and not codes


def test_the_plan_says_what_each_stage_takes(capsys):
    config = Config(plan=True, chip="v5p", devices=8)
    assert guarded(paper.run, config) == 0
    out = capsys.readouterr().out
    assert out.count("finetune: 7b-") == 4 and out.count("table2: 7b-") == 6 and "an assumption" in out
    (line,) = [line for line in out.splitlines() if "7b-long-yarn" in line and "steps" in line]
    # 105 M tokens, each 6 N + 6 L T D and what is recomputed, at half of 459 TFLOP/s.
    hours = float(line.split()[-2] if line.rstrip().endswith("│") else line.split()[-1])
    once = 50 * 64 * 32_768 * (6 * 6.607e9 + 6 * 32 * 32_768 * 4096) / (0.5 * 459e12) / 3600
    assert once * 0.999 < hours < once * 4 / 3 * 1.001
    assert guarded(paper.run, dataclasses.replace(config, devices=1)) == 1
    assert "does not fit" in capsys.readouterr().out


def test_on_chips_each_fine_tuning_gets_what_its_plan_finds(config, tmp_path, monkeypatch):
    words = []
    monkeypatch.setattr(paper, "run_command", lambda one: words.append(one) or 0)
    own = {"chip": "v5e", "devices": 4, "parts": ("finetune",), "run_dir": str(tmp_path / "run")}
    assert guarded(paper.run, dataclasses.replace(config, **own)) == 0
    assert len(words) == 4
    for one in words:
        given = dict(itertools.pairwise(one))
        assert given["--fsdp"] == "4" and given["--micro"] == "8" and given["--remat"] == "none"
    more = {"finetune": (*config.finetune, "micro=4"), "run_dir": str(tmp_path / "more")}
    assert guarded(paper.run, dataclasses.replace(config, **{**own, **more})) == 0
    assert "--micro 4" in " ".join(words[-1]) and " ".join(words[-1]).count("--micro") == 1


def test_stages_of_13b():
    found = stages(Config(model="13b", checkpoint="chat", leval="data"), Path("run"))
    assert len(found) == 11 and all("13b" in stage.preset for stage in found)
    assert found[4].options["checkpoints"][1] == "yarn=run/finetune/13b-long-yarn/hf"


MISTAKES = {
    "no checkpoint": (dict(checkpoint=""), "--checkpoint must be given for finetune and figure4 and table2"),
    "no corpus": (dict(corpus=""), "--corpus must be given for finetune"),
    "no questions": (dict(leval="nowhere"), "--leval must be a directory"),
    "nothing there": (dict(checkpoint="nowhere"), "--checkpoint must be a Hugging Face directory"),
    "no such option": (
        dict(finetune=("stepz=2",)),
        "--finetune: experiments.finetune: Config has no option stepz",
    ),
    "no value": (dict(table2=("limit",)), "expected NAME=VALUE, got 'limit'"),
    "a chip alone": (dict(chip="v5p"), "--chip and --devices go together"),
    "no chip": (dict(plan=True), "give --chip and --devices"),
    "no such chip": (dict(chip="abacus", devices=2), "there is no chip 'abacus'"),
    "no parts": (dict(parts=()), "--parts must be at least one"),
    "a bucket": (dict(run_dir="gs://b/run"), "--run-dir must be on a disk"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_is_made(config, tmp_path, name, monkeypatch, capsys):
    changes, sentence = MISTAKES[name]
    monkeypatch.setattr(paper, "run_command", lambda words: pytest.fail("a stage was run"))
    assert (
        guarded(paper.run, dataclasses.replace(config, **{"run_dir": str(tmp_path / "run"), **changes})) == 2
    )
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
