"""The passkey study as its user runs it: trained here, killed and resumed, and on a checkpoint."""

import csv
import dataclasses
import json
import shutil
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


@pytest.mark.full
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
    config = dataclasses.replace(
        PRESETS["checkpoint"][1],
        checkpoints=(f"small={checkpoint(tmp_path / 'small')}",),
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


def checkpoint(folder: Path, seed: int = 0, vocab_size: int = 258) -> Path:
    """A small random LLaMA with a byte vocabulary."""
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 16, "d_ff": 16}
    config = model.PRESETS["tiny"].replace(**shape, vocab_size=vocab_size)
    lm = model.Decoder(config, jax.random.key(seed))
    interop.save_hf(lm, folder, rope=rope.RopeSpec(head_dim=16, train_length=256))
    return folder


def asked(folder: Path, *paths: Path, **changes):
    """The config of a study of checkpoints, one short cell each."""
    common = {
        "checkpoints": tuple(map(str, paths)),
        "template": "short-bytes",
        "tokenizer": "bytes",
        "lengths": (64, 64),
        "depths": (0.5,),
        "trials": 2,
        "run_dir": str(folder),
    }
    return dataclasses.replace(PRESETS["checkpoint"][1], **(common | changes))


def test_over_a_mesh_a_checkpoint_says_the_same(tmp_path, capsys):
    small = checkpoint(tmp_path / "small")
    for name, changes in (("one", {}), ("mesh", {"tensor": 2, "batch_size": 2})):
        assert guarded(command.run, asked(tmp_path / name, small, **changes)) == 0
    cells = [json.loads((tmp_path / name / "cells.jsonl").read_text()) for name in ("one", "mesh")]
    assert cells[0]["answers"] == cells[1]["answers"]
    assert guarded(command.run, dataclasses.replace(SMALL, tensor=-1, run_dir=str(tmp_path / "bad"))) == 2
    assert "--tensor goes with --checkpoints" in capsys.readouterr().err


def test_replaced_weights_are_asked_anew_and_a_cell_that_is_named_twice_once(tmp_path, recwarn):
    small = checkpoint(tmp_path / "small")
    config = asked(tmp_path / "run", small)
    cells = lambda: [json.loads(line) for line in (tmp_path / "run" / "cells.jsonl").read_text().splitlines()]
    assert guarded(command.run, config) == 0
    first = cells()
    assert guarded(command.run, config) == 0
    assert cells() == first and len(first) == 1 and not recwarn
    (tmp_path / "run" / "passkey.json").unlink()  # as if it had been stopped
    shutil.rmtree(small)
    checkpoint(small, seed=1)
    assert guarded(command.run, config) == 0
    second = cells()
    assert len(second) == 1 and second[0]["made_by"] != first[0]["made_by"]
    assert any("other inputs" in str(w.message) for w in recwarn)
    shutil.rmtree(small)
    checkpoint(small)
    assert guarded(command.run, config) == 0
    assert cells() == first
    assert any("weights changed" in str(w.message) for w in recwarn)


def test_each_checkpoint_is_asked_under_its_own_tokenizer(tmp_path):
    plain, bare = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "bare")
    for folder, first in ((plain, True), (bare, False)):
        byte_tokenizer(folder, puts_bos_first=first)
    config = asked(tmp_path / "run", plain, bare, tokenizer=None)
    assert guarded(command.run, config) == 0
    identities = read_json(tmp_path / "run" / "passkey.json")["identity"]["models"]["checkpoints"]
    assert [identity["bos"] for identity in identities.values()] == [256, None]
    none = asked(tmp_path / "none", plain, tokenizer=None, bos="none")
    assert guarded(command.run, none) == 0
    (identity,) = read_json(tmp_path / "none" / "passkey.json")["identity"]["models"]["checkpoints"].values()
    assert identity["bos"] is None


def byte_tokenizer(folder: Path, puts_bos_first: bool) -> None:
    """A byte-level tokenizer.json whose ids 256 and 257 are <s> and </s>."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate([*alphabet, "<s>", "</s>"])}, [])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    if puts_bos_first:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    made.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encodings": ("yam",)}, "unknown encoding 'yam'"),
        ({"encodings": ("yarn",), "scale": float("inf")}, "--scale must be at least 1, got inf"),
        ({"vocab_size": 100, "bos": "none"}, "outside the vocabulary of the model"),
        ({"lengths": (20,)}, "alone is longer than 20 tokens"),
    ],
)
def test_a_checkpoint_is_refused_before_anything_is_made(tmp_path, changes, sentence, capsys):
    small = checkpoint(tmp_path / "small", vocab_size=changes.pop("vocab_size", 258))
    assert guarded(command.run, asked(tmp_path / "run", small, **changes)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encodings": ()}, "--encodings must be at least one"),
        ({"depths": ()}, "--depths must be at least one"),
        ({"depths": (0.5, 1.5)}, "--depths must be at most 1, got 1.5"),
        ({"depths": (-0.1,)}, "--depths must be at least 0, got -0.1"),
        ({"depths": (float("nan"),)}, "--depths must be at least 0, got nan"),
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"lengths": (0,)}, "--lengths must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"seeds": (0, -1)}, "--seeds must be at least 0, got -1"),
        ({"stages": (), "stage_steps": (), "stage_rows": ()}, "--stages must be at least one"),
        ({"stage_steps": (0,)}, "--stage-steps must be at least 1, got 0"),
        ({"scale": 0.5}, "--scale must be at least 1, got 0.5"),
        ({"encodings": ("yam",)}, "unknown encoding 'yam'"),
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
