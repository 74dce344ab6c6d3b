"""L-Eval as its user runs it, on our own texts in the real format with random weights: scores are chance."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from configs.leval import PRESETS, Config, Score
from experiments import leval as command
from resonance_jax import data, generate, interop, model, rope
from resonance_jax.command import guarded
from resonance_jax.data import leval
from resonance_jax.evaluate import leval_asking
from resonance_jax.evaluate.journal import Journal
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


def small(inputs: Path, folder: Path, **changes) -> Config:
    """The config of a run over four questions, quick to ask."""
    return asked(inputs, folder, **({"tasks": ("tpo",), "max_new_tokens": 3} | changes))


def test_by_default_every_question_fits_and_the_length_is_said(inputs, tmp_path, capsys):
    long = {**lines("tpo")[0], "input": "ship " * 97, "instructions": ["Which?" * 50, "Who?" * 50]}
    write(inputs / "long", {"tpo": [long, lines("tpo")[1]]})
    assert guarded(command.run, small(inputs, tmp_path / "run", data="long")) == 0
    result = read_json(tmp_path / "run" / "leval.json")
    told = predictions(tmp_path / "run")["tpo.pred.jsonl"]
    needed = max(record["prompt_tokens"] for record in told) + 3
    assert len(told) == 4 and result["left_out"] == [] and result["length"] == needed > 1024
    assert f"length: {needed:,} positions, as needed" in capsys.readouterr().out
    short = small(inputs, tmp_path / "short", data="long", length=needed - 1)
    assert guarded(command.run, short) == 3
    assert {
        i["why"].partition(" was")[0] for i in read_json(tmp_path / "short" / "leval.json")["left_out"]
    } <= {
        "Question 0:0",
        "Question 0:1",
    }


def test_replaced_weights_and_edited_questions_are_asked_anew(inputs, tmp_path, recwarn):
    """At the same paths: of edited questions that task alone is asked again, of new weights every one."""
    shutil.copytree(inputs / "small", tmp_path / "small")
    shutil.copytree(inputs / "data", tmp_path / "data")
    config = small(
        inputs,
        tmp_path / "run",
        checkpoint=str(tmp_path / "small"),
        tasks=("tpo", "quality"),
        data=tmp_path / "data",
    )
    assert guarded(command.run, config) == 0
    first = predictions(tmp_path / "run")
    assert guarded(command.run, config) == 0 and predictions(tmp_path / "run") == first and not recwarn
    edited = [{**record, "outputs": ["A", "B"]} for record in lines("tpo")]
    (tmp_path / "data" / "tpo.jsonl").write_text("".join(json.dumps(record) + "\n" for record in edited))
    assert guarded(command.run, config) == 0
    second = predictions(tmp_path / "run")
    assert [record["gt"] for record in second["tpo.pred.jsonl"]] == ["A", "B"] * 2
    assert second["quality.pred.jsonl"] == first["quality.pred.jsonl"]
    assert any("L-Eval's data.tpo changed" in str(w.message) for w in recwarn)
    weights = tmp_path / "small" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert guarded(command.run, config) == 0
    third = predictions(tmp_path / "run")
    made_by = lambda found, task: {record["made_by"] for record in found[f"{task}.pred.jsonl"]}
    for task in ("tpo", "quality"):
        assert len(made_by(third, task)) == 1 and made_by(third, task) != made_by(second, task)
    assert any("checkpoint.weights changed" in str(w.message) for w in recwarn)


def test_a_half_finished_journal_of_other_weights_is_not_mixed_in(inputs, tmp_path, recwarn):
    config = small(inputs, tmp_path / "run")
    assert guarded(command.run, config) == 0
    path = tmp_path / "run" / "predictions" / "tpo.pred.jsonl"
    whole = path.read_text()
    (tmp_path / "run" / "leval.json").unlink()
    foreign = Journal(tmp_path / "foreign.jsonl", {"weights": "others"})
    foreign.append({"id": "0:0", "small-1k_pred": "X", "gt": "D"})
    path.write_text(foreign.path.read_text() + whole.splitlines(keepends=True)[0])
    assert guarded(command.run, config) == 0
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())
    assert any("other inputs" in str(w.message) for w in recwarn)


def test_a_prompt_of_tokens_that_the_model_lacks_is_refused_before_anything_is_made(inputs, tmp_path, capsys):
    config = model.PRESETS["tiny"].replace(
        d_model=32, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, d_ff=32, vocab_size=100
    )
    lm = model.Decoder(config, jax.random.key(0))
    interop.save_hf(lm, tmp_path / "less", rope=rope.RopeSpec(head_dim=32, train_length=512))
    refused = small(inputs, tmp_path / "run", checkpoint=str(tmp_path / "less"), bos="none")
    assert guarded(command.run, refused) == 2
    assert "The prompt of question 0:0 of tpo holds token" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tokens", "ceil", "exact"),
    [(100, 512, 150), (512, 512, 562), (513, 1024, 563), (974, 1024, 1024), (975, 1536, 1025)],
)
def test_a_dynamic_scale_is_rounded_up_as_in_the_benchmarks_script(tokens, ceil, exact):
    dynamic = rope.RopeSpec("dynamic_ntk", head_dim=32, train_length=512)
    declared = leval_asking.declared_length
    assert declared(dynamic, tokens, 50, 9999) == ceil
    assert declared(dynamic, tokens, 50, 9999, "exact") == exact
    assert declared(rope.RopeSpec(head_dim=32, train_length=512), tokens, 50, 9999) == 9999


def test_the_base_of_dynamic_ntk_is_that_of_the_script():
    """base * s^(d / (d - 2)), s = 2 for 5,000 tokens; the second pair turns by base^(-2 / d)."""
    spec = rope.RopeSpec("dynamic_ntk", head_dim=128, train_length=4096)
    for how, base in (("ceil", 20_221), ("exact", 13_521)):
        length = leval_asking.declared_length(spec, 5000, 512, 0, how)
        inverse = rope.frequencies(spec, length=length).inv_freq64
        assert inverse[1] ** -64 == pytest.approx(base, abs=1)


def test_questions_of_one_dynamic_scale_share_a_batch(inputs, tmp_path, monkeypatch):
    uneven = [{**record, "input": "ship " * 5 * (i + 1)} for i, record in enumerate(lines("sci_fi"))]
    write(inputs / "uneven", {"sci_fi": uneven})
    batches = []
    whole = generate.generate

    def counted(lm, rows, *arguments, **options):
        batches.append(len(rows))
        return whole(lm, rows, *arguments, **options)

    monkeypatch.setattr(generate, "generate", counted)
    monkeypatch.setattr(generate, "share", lambda *_: None)  # as where documents have little in common
    changes = {"encoding": "dynamic-ntk", "tasks": ("sci_fi",), "batch_size": 4, "data": "uneven"}
    assert guarded(command.run, small(inputs, tmp_path / "ceil", **changes)) == 0
    assert batches == [4, 4]  # with the second prompt of each
    exact = small(inputs, tmp_path / "exact", dynamic_scale="exact", **changes)
    assert guarded(command.run, exact) == 0
    assert batches[2:] == [2, 2, 2, 2]


class Chatting(data.tokenizers.Bytes):
    """Bytes with a chat template, whose marks are text."""

    chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def test_a_model_may_be_asked_in_its_own_chat_template(inputs):
    """The words are L-Eval's, the marks the model's."""
    questions = {task: leval.read(inputs / "data", task)[0][:1] for task in leval.TASKS}
    tokenizer = Chatting()
    for task, some in questions.items():
        ask = lambda some=some, **how: next(
            leval_asking.prompts(some, tokenizer, 10**5, 258, lambda *_: None, **how)
        )
        plain, own = ask(), ask(chat=True)
        text = tokenizer.decode(own.tokens)
        assert text.startswith(f"<system>{leval.TASKS[task].system}<user>") and text.endswith("<assistant>")
        user = text.split("<user>")[1].removesuffix("<assistant>")
        assert user in tokenizer.decode(plain.tokens) and own.tokens[0] == tokenizer.bos_id
        assert (own.fact is not None) == (task == "sci_fi")
    with pytest.raises(ValueError, match="bytes has no chat template"):
        next(leval_asking.prompts(some, data.tokenizer("bytes"), 10**5, 258, lambda *_: None, chat=True))


def test_the_answers_of_gsm100_may_be_longer(inputs, tmp_path):
    changes = {"tasks": ("gsm100", "tpo"), "max_new_tokens": 2, "gsm_new_tokens": 5, "limit": 1}
    assert guarded(command.run, small(inputs, tmp_path, **changes)) == 0
    for task, most in (("gsm100", 5), ("tpo", 2)):
        record = json.loads((tmp_path / "predictions" / f"{task}.pred.jsonl").read_text())
        assert record["ended"] == "length" and len(record["small-1k_pred"].encode()) <= 4 * most


def test_a_document_is_read_once_for_its_questions(inputs, tmp_path, monkeypatch):
    """Long documents: every question goes on from a prefix, and says what it says when it is asked alone."""
    long = [{**record, "input": f"ship {i} " * 60} for i, record in enumerate(lines("tpo"))]
    write(inputs / "read-once", {"tpo": long})
    changes = {"tasks": ("tpo",), "batch_size": 2, "data": "read-once"}
    asked = []
    whole = generate.generate

    def counted(lm, rows, *arguments, **options):
        asked.append((len(rows), options.get("shared") is not None))
        return whole(lm, rows, *arguments, **options)

    monkeypatch.setattr(generate, "generate", counted)
    assert guarded(command.run, small(inputs, tmp_path / "shared", **changes)) == 0
    assert asked and all(shared for _, shared in asked)
    monkeypatch.setattr(generate, "share", lambda *_: None)
    assert guarded(command.run, small(inputs, tmp_path / "alone", **{**changes, "batch_size": 1})) == 0
    said = [(tmp_path / name / "predictions" / "tpo.pred.jsonl").read_text() for name in ("shared", "alone")]
    answers = [[json.loads(line) for line in text.splitlines()] for text in said]
    assert answers[0] == answers[1] and len(answers[0]) == sum(n for n, shared in asked if shared)


def stored(path: Path, records: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_stored_predictions_are_scored_with_intervals(tmp_path, capsys):
    one = [{"query": "?", "gt": "D", "m_pred": said, "evaluation": "exam"} for said in ("D", "D.", "A", "D")]
    files = [
        stored(tmp_path / "m" / "tpo.pred.jsonl", one),
        stored(
            tmp_path / "m" / "gsm100.pred.jsonl", [{"gt": "The answer is 7", "m_pred": "The answer is 7"}]
        ),
        stored(tmp_path / "other" / "tpo.jsonl", [{"answer": "D", "prediction": "D"}]),
    ]
    assert guarded(command.run, Score(files=tuple(files))) == 0
    out = capsys.readouterr().out
    assert "75.00" in out and "30.1 … 95.4" in out and "4 (269)" in out and "100.00" in out
    assert "L-Eval, closed-ended tasks (%): other" in out and "out of tokens" not in out
    (averages,) = {row["Avg."] for row in report.table("m", [report.task_result("tpo", ["D"], ["D"])])}
    assert averages == ""  # five tasks are missing


def test_all_six_tasks_have_an_average(tmp_path, capsys):
    files = [
        stored(tmp_path / f"{task}.pred.jsonl", [{"gt": answers[0], "m_pred": answers[0]}])
        for task, answers in ANSWERS.items()
    ]
    assert guarded(command.run, Score(files=tuple(files))) == 0
    assert capsys.readouterr().out.count("100.00") == 7


def test_the_space_of_a_slow_tokenizer_can_be_dropped(tmp_path, capsys):
    said = [{"gt": "AC", "m_pred": " AC [/INST] Answer: D."}]
    file = stored(tmp_path / "coursera.pred.jsonl", said)
    for how, score in (("keep", "0.00"), ("drop", "100.00")):
        assert guarded(command.run, Score(files=(file,), leading_space=how)) == 0
        assert f" {score} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "records", "code", "sentence"),
    [
        ("topic.pred.jsonl", [{"gt": "A", "m_pred": "A"}], 2, "named after no closed-ended task"),
        ("tpo.pred.jsonl", [{"gt": "A"}], 2, "holds none (There is no 'prediction' in line 1"),
        ("tpo.pred.jsonl", [{"gt": "A", "m_pred": "A"}, {"gt": "A", "n_pred": "A"}], 2, "those of m, n"),
        (
            "tpo.pred.jsonl",
            [{"gt": "A", "m_pred": "A"}, {"m_pred": 3, "gt": "A"}],
            3,
            "left out, tpo: The field",
        ),
    ],
)
def test_stored_predictions_that_cannot_be_read_are_said(tmp_path, name, records, code, sentence, capsys):
    assert guarded(command.run, Score(files=(stored(tmp_path / name, records),))) == code
    said = capsys.readouterr()
    assert sentence in said.out + said.err


def test_two_files_of_one_task_are_not_one_row(tmp_path, capsys):
    files = [stored(tmp_path / place / "tpo.jsonl", [{"gt": "A", "m_pred": "A"}]) for place in "ab"]
    assert guarded(command.run, Score(files=tuple(files))) == 2
    assert "a second file of m's predictions of tpo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint": "nowhere"}, "nowhere is not a directory or a GGUF file"),
        ({"tasks": ()}, "--tasks must be at least one"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"length": 0}, "--length must be at least 1, got 0"),
        ({"scale": float("nan"), "encoding": "yarn"}, "--scale must be at least 1, got nan"),
        ({"scale": 0.5}, "--scale must be at least 1, got 0.5"),
        ({"dynamic_scale": "floor"}, "--dynamic-scale must be ceil or exact, got 'floor'"),
        ({"stop": ("",)}, "--stop must be strings of at least one character"),
        ({"length": 20}, "no question could be asked"),
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
    assert not (tmp_path / "run").exists()


def test_the_papers_rows_are_the_goldens_and_each_has_its_preset():
    with (ROOT / "tests" / "goldens" / "paper_table2.csv").open() as file:
        golden = list(csv.DictReader(file))
    columns = ("coursera", "gsm", "quality", "toefl", "codeu", "sfiction", "avg_printed")
    assert [list(row.values()) for row in report.PAPER.values()] == [
        [row[c] for c in columns] for row in golden
    ]
    rows = {name: config for name, (_, config) in PRESETS.items() if name not in ("any", "smollm2", "score")}
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
