"""The passkey study as its user runs it: trained here, killed and resumed, and on a checkpoint."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import pytest

from configs.passkey import PRESETS
from experiments import passkey as command
from resonance_jax import interop, model, rope
from resonance_jax.command import guarded
from resonance_jax.evaluate import passkey
from resonance_jax.files import read_json
from resonance_jax.report import passkey as report

SMALL = dataclasses.replace(
    PRESETS["cpu"][1],
    encodings=("dynamic-ntk", "resonance-yarn"),
    lengths=(64, 96),
    depths=(0.0, 1.0),
    trials=2,
    train_length=64,
    seeds=(0, 1),
    d_model=16,
    n_layers=1,
    head_dim=16,
    stages=(64,),
    stage_steps=(2,),
    stage_rows=(2,),
    questions=1,
    finetune_steps=1,
)


def files(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in ("passkey.csv", "cells.jsonl", "encodings.json")}


def test_a_killed_study_goes_on_with_the_next_cell(tmp_path, monkeypatch, capsys):
    whole = dataclasses.replace(SMALL, run_dir=str(tmp_path / "whole"))
    assert guarded(command.run, whole) == 0
    assert "template short-bytes" in capsys.readouterr().out
    asked = []
    cell = passkey.cell

    def counted(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return cell(*arguments, **options)

    monkeypatch.setattr(passkey, "cell", counted)
    killed = dataclasses.replace(SMALL, run_dir=str(tmp_path / "killed"))
    assert guarded(command.run, killed) == 130
    with (tmp_path / "killed" / "cells.jsonl").open("a") as file:
        file.write('{"encoding": "R')
    assert guarded(command.run, killed) == 0
    encodings, models, cells = 3, 2, 4
    assert len(asked) == 1 + encodings * models * cells
    assert files(tmp_path / "whole") == files(tmp_path / "killed")
    result = read_json(tmp_path / "whole" / "passkey.json")
    assert [line["encoding"] for line in result["table"]] == [
        "Dynamic NTK",
        "Resonance YaRN",
        "Resonance YaRN, fine-tuned",
    ]
    rows = list(csv.DictReader((tmp_path / "whole" / "passkey.csv").open()))
    assert len(rows) == encodings * cells and {row["trials"] for row in rows} == {"4"}
    assert {row["template"] for row in rows} == {"short-bytes"}
    assert (tmp_path / "whole" / "passkey.png").read_bytes()[:4] == b"\x89PNG"
    trained = {record["fingerprint"] for meta in metas(tmp_path / "whole") for record in meta["encodings"]}
    tables = [rope.RopeSpec(head_dim=16, train_length=64, resonance=r) for r in (False, True)]
    tables.append(rope.named("resonance-yarn", head_dim=16, train_length=64, scale=8.0))
    assert trained == {rope.fingerprint(rope.frequencies(spec)) for spec in tables}


def metas(folder: Path) -> list[dict]:
    """What the trainings' checkpoints state."""
    found = [json.loads(path.read_text()) for path in folder.glob("train-*/checkpoints/*/meta/metadata")]
    return [meta for meta in found if "encodings" in meta]


def test_a_checkpoint_under_its_own_encoding_and_another(tmp_path, capsys):
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 16, "d_ff": 16}
    lm = model.Decoder(model.PRESETS["tiny"].replace(**shape), jax.random.key(0))
    interop.save_hf(lm, tmp_path / "small", rope=rope.RopeSpec(head_dim=16, train_length=256))
    config = dataclasses.replace(
        PRESETS["checkpoint"][1],
        checkpoints=(f"small={tmp_path / 'small'}",),
        encodings=("own", "yarn"),
        tokenizer="bytes",
        lengths=(512,),
        depths=(0.5,),
        trials=1,
        run_dir=str(tmp_path / "run"),
    )
    assert guarded(command.run, config) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "passkey.csv").open()))
    assert [(row["encoding"], row["template"]) for row in rows] == [
        ("RoPE (own)", "landmark"),
        ("YaRN", "landmark"),
    ]
    assert all(int(row["prompt_tokens"]) < 512 for row in rows)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"template": "long"}, "unknown passkey template 'long'"),
        ({"encodings": ("own",)}, "have no encoding of their own"),
        ({"train_length": 128}, "give --encodings by name and --train-length 64"),
        ({"stage_rows": (2, 2)}, "must be as many"),
        ({"seeds": ()}, "give --checkpoints PATH"),
        ({"lengths": (32,)}, "alone is longer than 32 tokens"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, changes, sentence, capsys):
    config = dataclasses.replace(SMALL, run_dir=str(tmp_path / "run"), **changes)
    assert guarded(command.run, config) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_table_line_sums_depths_and_shows_the_spread_over_models():
    cell = {"encoding": "RoPE", "template": "t", "prompt_tokens": 9, "trials": 10}
    cells = [
        {**cell, "model": seed, "length": length, "depth": depth, "right": right}
        for (seed, length, depth), right in {
            (0, 64, 0.0): 10,
            (0, 64, 1.0): 8,
            (1, 64, 0.0): 10,
            (1, 64, 1.0): 6,
            (0, 128, 0.0): 0,
            (1, 128, 0.0): 5,
        }.items()
    ]
    (line,) = report.table(cells)
    assert line == {"encoding": "RoPE", "64": "85 (80 … 90)", "128": "25 (0 … 50)", "at least 80 %": 64}
    rows = report.rows(cells)
    assert [(row["length"], row["depth"], row["right"], row["trials"]) for row in rows] == [
        (64, 0.0, 20, 20),
        (64, 1.0, 14, 20),
        (128, 0.0, 5, 20),
    ]
