"""L-Eval as its user runs it, on our own texts in the real format with random weights: scores are chance."""

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
import pytest

from configs.leval import PRESETS, Config
from experiments import leval as command
from resonance_jax import interop, model, rope
from resonance_jax.command import guarded
from resonance_jax.data import leval
from resonance_jax.files import read_json
from resonance_jax.report import leval as report

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = {
    "coursera": ["ACD", "B"],
    "gsm100": ["So 3 + 4 = 7.\nThe answer is 7"],
    "quality": ["(B) the sea", "(A) the hill"],
    "tpo": ["D", "C"],
    "codeU": ["[6 15]"],
    "sci_fi": ["True [fact: False]", "False [fact: True]"],
}


def lines(task: str) -> list[dict]:
    """Two documents of a task, short enough to be asked about."""
    return [
        {
            "instructions": [f"Question {i} of {task}? " for i in range(len(ANSWERS[task]))],
            "outputs": ANSWERS[task],
            "input": f"Document {number}: the ship sailed at {number + 7} and {{came}} back.",
            "source": "ours",
            "evaluation": "exam",
        }
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """small/, a random byte-level LLaMA, and data/, six files in L-Eval's format."""
    folder = tmp_path_factory.mktemp("leval")
    config = model.PRESETS["tiny"].replace(
        d_model=32, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, d_ff=32
    )
    lm = model.Decoder(config, jax.random.key(0))
    interop.save_hf(lm, folder / "small", rope=rope.RopeSpec(head_dim=32, train_length=512))
    write(folder / "data", {task: lines(task) for task in ANSWERS})
    return folder


def write(folder: Path, files: dict[str, list[dict]]) -> None:
    folder.mkdir()
    for task, records in files.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{task}.jsonl").write_text(text)


def asked(inputs: Path, folder: Path, data: str = "data", **changes) -> Config:
    """The config of a small run."""
    common = {"tokenizer": "bytes", "context": "1k", "max_new_tokens": 20, "run_dir": str(folder)}
    paths = {"checkpoint": str(inputs / "small"), "data": str(inputs / data)}
    return dataclasses.replace(PRESETS["any"][1], **(common | paths | changes))


def start(config: Config) -> subprocess.Popen:
    """The command of its own, with this process's XLA flags: the same programs, the same tokens."""
    words = [sys.executable, "-m", "experiments.leval", "any"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(PRESETS["any"][1], field.name):
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return subprocess.Popen(
        words, cwd=ROOT, env=dict(os.environ), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def predictions(folder: Path) -> dict[str, list[dict]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / "predictions").iterdir())
    }


def test_killed_and_resumed_is_uninterrupted_and_the_row_stands_beside_the_papers(inputs, tmp_path, capsys):
    changes = {"encoding": "resonance-yarn", "scale": 8.0, "paper": "7b-short-resonance", "batch_size": 2}
    config = asked(inputs, tmp_path / "killed", **changes)
    process = start(config)
    stored = lambda: sum(map(len, predictions(tmp_path / "killed").values()))
    while process.poll() is None and not ((tmp_path / "killed" / "predictions").exists() and stored() >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert 5 <= stored() < 20
    last = max((tmp_path / "killed" / "predictions").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    with last.open("a") as file:  # what a kill in the middle of a line leaves
        file.write('{"query": "Quest')
    assert guarded(command.run, config) == 0
    assert guarded(command.run, asked(inputs, tmp_path / "whole", **changes)) == 0
    out = capsys.readouterr().out
    whole = predictions(tmp_path / "whole")
    assert whole == predictions(tmp_path / "killed")
    assert {name: len(records) for name, records in whole.items()} == {
        f"{task}.pred.jsonl": 2 * len(answers) for task, answers in ANSWERS.items()
    }
    first = whole["tpo.pred.jsonl"][0]
    assert list(first)[:5] == ["query", "gt", "prompt", "small-1k_pred", "evaluation"]
    assert all("[fact: " in record["small-1k_pred"] for record in whole["sci_fi.pred.jsonl"])
    assert str(inputs / "small") in out and "Resonance YaRN" in out
    rows = {row[""]: row for row in csv.DictReader((tmp_path / "whole" / "table.csv").open())}
    assert rows["paper, 7b-short-resonance"]["Avg."] == "37.58"
    ours, gap = rows["small-1k"], rows["difference"]
    for column in ("Coursera", "GSM", "Avg."):
        paper = float(rows["paper, 7b-short-resonance"][column])
        assert float(gap[column]) == pytest.approx(float(ours[column]) - paper, abs=0.011)
    questions = float(rows["in questions of the paper's"]["GSM"])
    assert questions == pytest.approx(float(gap["GSM"]), abs=0.06)  # 100 questions: one a point
    assert rows["questions (of the benchmark's)"]["CodeU"] == "2 (90)"


def test_what_cannot_be_asked_is_said_and_the_rest_is_answered(inputs, tmp_path, capsys):
    good = lines("tpo")
    missing = {key: value for key, value in good[0].items() if key != "outputs"}
    empty, unbroken = {**good[0], "input": " "}, {**good[0], "input": "x" * 3000}
    cut = {**good[0], "input": "a " * 600}
    long = {**good[0], "instructions": ["Q?", "Q" * 900]}
    write(inputs / "bad", {"tpo": [good[0], missing, empty, unbroken, cut, long]})
    changes = {"data": "bad", "tasks": ("tpo",), "length": 1100, "stop": ("never said",)}
    config = asked(inputs, tmp_path / "run", **changes)
    assert guarded(command.run, config) == 3
    out = capsys.readouterr().out
    result = read_json(tmp_path / "run" / "leval.json")
    sentences = " ".join(item["why"] for item in result["left_out"])
    # Two of the five are both questions about the document that cannot be cut.
    assert len(result["left_out"]) == 5 and "line 2" in sentences and "line 3" in sentences
    assert "too few spaces" in sentences and "more than the declared length 1100" in sentences
    (task,) = result["results"]
    assert (task["questions"], task["documents_cut"]) == (5, 2)
    assert task["ended_by_length"] == 5  # neither an EOS nor the stop string came
    assert out.count("left out, tpo") == 5 and "first prompt:\n[INST]<<SYS>>" in out
    assert guarded(command.run, config) == 3 and "left out, tpo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ("tpo", "topic")}, "unknown task 'topic'"),
        ({"paper": "70b"}, "Table 2 has no row '70b'"),
        ({"data": "nowhere"}, "--data must be a directory"),
        ({"context": "1"}, "written like '16k'"),
        ({"encoding": "yam"}, "unknown encoding 'yam'"),
    ],
)
def test_bad_input_is_one_sentence(inputs, tmp_path, changes, sentence, capsys):
    assert guarded(command.run, asked(inputs, tmp_path / "run", **changes)) == 2
    assert sentence in capsys.readouterr().err


def test_the_papers_rows_are_the_goldens_and_each_has_its_preset():
    with (ROOT / "tests" / "goldens" / "paper_table2.csv").open() as file:
        golden = list(csv.DictReader(file))
    columns = ("coursera", "gsm", "quality", "toefl", "codeu", "sfiction", "avg_printed")
    assert [list(row.values()) for row in report.PAPER.values()] == [
        [row[c] for c in columns] for row in golden
    ]
    rows = {name: config for name, (_, config) in PRESETS.items() if name not in ("any", "score")}
    assert list(rows) == list(report.PAPER)
    methods = {"Dynamic NTK-Aware": "dynamic-ntk", "NTK-Aware": "ntk", "YaRN": "yarn"}
    for (name, config), row in zip(rows.items(), golden, strict=True):
        resonance = "resonance-" if row["method"].startswith("Resonance") else ""
        assert config.encoding == resonance + methods[row["method"].removeprefix("Resonance ")]
        assert config.context == row["ctx_len"].lower() and config.paper == name
        assert not row["scale_s"] or config.scale == float(row["scale_s"])
        kind = {"": "", "4K": "short"}.get(row["ft_seq_len"], "long")
        assert name.startswith(row["model"].lower()) and kind in name


def test_every_question_of_the_benchmark_is_counted():
    assert sum(task.questions for task in leval.TASKS.values()) == 897
