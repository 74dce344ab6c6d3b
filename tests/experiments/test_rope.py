"""The commands on encodings as their user types them: what they print, write and refuse."""

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from experiments.rope import ASKED
from experiments.rope import run as run_config
from experiments.rope.export import show_check
from resonance_jax import interop, model, rope
from resonance_jax.command import guarded
from resonance_jax.files import read_json

SMALL = ("--head-dim", "16", "--train-length", "64", "--scale", "4")


def run(*arguments) -> int:
    asked = tyro.conf.PositionalRequiredArgs[ASKED]
    return guarded(run_config, tyro.cli(asked, args=[str(argument) for argument in arguments]))


def read_csv(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small decoder whose logits depend on positions, trained (it says) at 64 of them."""
    config = model.PRESETS["tiny"].replace(
        d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, vocab_size=258, tie_embeddings=False
    )
    lm = model.Decoder(config, jax.random.key(0))
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    spec = rope.RopeSpec(head_dim=16, train_length=64)
    interop.save_hf(lm, folder, rope=spec, length=64, extra={"bos_token_id": 256})
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_explain_reads_files_directories_and_names(checkpoint, capsys, tmp_path):
    assert run("explain", checkpoint) == 0
    from_directory = capsys.readouterr().out
    assert run("explain", checkpoint / "config.json") == 0
    assert capsys.readouterr().out == from_directory
    assert from_directory.strip() == rope.explain(read_json(checkpoint / "config.json"))
    assert "trained at 64 positions" in from_directory
    assert run("explain", "resonance-yarn", *SMALL, "--beta-fast", "8") == 0
    named = capsys.readouterr().out
    assert named.startswith("Resonance YaRN") and "beta_fast=8.0" in named and "scaled 4x to 256" in named
    assert run("explain", "dynamic-ntk", *SMALL) == 0
    assert "what follows is for 256" in " ".join(capsys.readouterr().out.split())


def test_show_writes_its_numbers_beside_its_pictures(capsys, tmp_path):
    names = ("rope", "yarn", "resonance-yarn")
    command = ("show", *names, "--head-dim", "64", "--train-length", "64", "--length", "256")
    assert run(*command, "--run-dir", tmp_path / "run") == 0
    folder = tmp_path / "run"
    for picture in ("wavelengths", "feature_gap", "decay", "angles"):
        assert (folder / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    spec = rope.RopeSpec("yarn", head_dim=64, scale=4.0, train_length=64, resonance=True)
    freqs = rope.frequencies(spec)
    records = read_json(folder / "encodings.json")
    assert list(records) == ["RoPE", "YaRN", "Resonance YaRN"]
    assert rope.same(rope.from_record(records["Resonance YaRN"]), freqs)
    pairs = [row for row in read_csv(folder / "pairs.csv") if row["encoding"] == "Resonance YaRN"]
    gap = rope.feature_gap(freqs, 64, 256)
    np.testing.assert_array_equal([float(row["feature_gap"]) for row in pairs], gap)
    angles = read_csv(folder / "angles.csv")
    titles = list(dict.fromkeys(row["encoding"] for row in angles))
    assert titles == ["RoPE", "Resonance RoPE", "YaRN", "Resonance YaRN"] and len(angles) == 4 * 128
    rows = {row["encoding"]: row for row in read_json(folder / "show.json")["rows"]}
    assert rows["RoPE"]["critical dimension"] == 9
    assert rows["Resonance YaRN"]["largest gap before it"] == 0
    assert "Resonance YaRN" in capsys.readouterr().out


def test_show_looks_at_each_layer_type_of_a_checkpoint(tmp_path, capsys):
    stated = {"head_dim": 32, "max_position_embeddings": 64, "model_type": "gemma3_text"}
    full = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
    local = {"rope_type": "default", "rope_theta": 1e4}
    parameters = {"full_attention": full, "sliding_attention": local}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(stated | {"rope_parameters": parameters}))
    named = ("yarn", "--train-length", "64", "--length", "256")
    assert run("show", config, *named, "--run-dir", tmp_path / "run") == 0
    records = read_json(tmp_path / "run" / "encodings.json")
    wanted = {
        "Linear, full_attention": rope.RopeSpec("linear", head_dim=32, base=1e6, scale=4.0),
        "RoPE, sliding_attention": rope.RopeSpec(head_dim=32, base=1e4),
        "YaRN": rope.RopeSpec("yarn", head_dim=32, base=1e6, scale=4.0, train_length=64),
    }
    assert list(records) == list(wanted)
    for label, spec in wanted.items():
        assert rope.same(rope.from_record(records[label]), rope.frequencies(spec)), label
    assert "sliding_attention" in capsys.readouterr().out


def test_numerics_writes_its_numbers_beside_its_picture(capsys, tmp_path):
    folder = tmp_path / "run"
    command = ("numerics", *SMALL, "--methods", "rope", "--last-position", "4096", "--run-dir", folder)
    assert run(*command) == 0
    assert (folder / "phase_error_cpu.png").read_bytes()[:4] == b"\x89PNG"
    rows = read_csv(folder / "phase_error.csv")
    assert {row["position"] for row in rows} == {"256", "512", "1024", "2048", "4096"}
    worst = {way: max(float(r["cos_error"]) for r in rows if r["way"] == way) for way in ways(rows)}
    assert worst["exact"] < 1e-6 < 1e-5 < worst["float32 product"] < 1e-3 < worst["bfloat16 product"]
    assert "float32 product" in capsys.readouterr().out


def ways(rows):
    return {row["way"] for row in rows}


@pytest.mark.parity
def test_export_is_the_same_model_in_transformers(checkpoint, capsys, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder, out = tmp_path / "run", tmp_path / "out"
    command = ("export", checkpoint, "--encoding", "resonance-yarn", "--scale", "8", "--out", out)
    command = (*command, "--tokenizer", "bytes", "--run-dir", folder, "--new-tokens", "20")
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "Resonance YaRN, rope_type longrope, for 512 positions" in said
    assert "20 tokens after 44: identical" in said
    result = read_json(folder / "export.json")
    assert [row["length"] for row in result["rows"]] == [64, 512]
    for row in result["rows"]:
        assert row["logits_alike"] < 1e-4 and row["logits"] < 1e-3
        assert abs(row["nll_difference"]) < 1e-4
        # transformers multiplies in float32, and that shows; ours would be below 1e-6
        assert 1e-6 < row["cos_error"] < 1e-4
        assert row["logits_lost"] > 0
    exported = interop.load_hf(out)
    spec = rope.RopeSpec("yarn", head_dim=16, scale=8.0, train_length=64, resonance=True)
    assert rope.same(rope.frequencies(exported.rope), rope.frequencies(spec))
    assert read_json(out / "config.json")["bos_token_id"] == 256 and (out / "tokenizer_config.json").exists()
    assert run(*command) == 0  # again: only shown
    assert capsys.readouterr().out == said
    (folder / "export.json").write_text(json.dumps({**result, "text": "edited"}))
    with pytest.warns(UserWarning, match="is damaged or was edited: made anew"):
        assert run(*command) == 0
    for row, key, value in ((0, "logits_alike", 0.01), (0, "logits_alike", np.nan), (1, "logits", np.inf)):
        bad = json.loads(json.dumps(result))
        bad["rows"][row][key] = value
        assert show_check(bad, 1e-4) == 1
        assert "NOT the same model" in capsys.readouterr().out
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-1])
    assert run(*command) == 2
    assert "is not what this run wrote" in capsys.readouterr().err


def test_export_without_torch_says_so(checkpoint, capsys, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert run("export", checkpoint, "--encoding", "yarn", "--run-dir", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "rope_type yarn" in said and "not checked: torch is not installed" in said
    assert interop.load_hf(tmp_path / "run" / "hf").rope.method == "yarn"


def test_export_keeps_what_the_own_method_states(checkpoint, tmp_path):
    """Without --scale the checkpoint's own is kept, and its options; --scale is applied to it as to any."""
    lm = interop.load_hf(checkpoint)
    spec = rope.RopeSpec("yarn", head_dim=16, scale=2.0, train_length=64, beta_fast=8.0)
    interop.save_hf(lm, tmp_path / "yarn", rope=spec, length=128)

    def exported(*more):
        out = tmp_path / "-".join(["out", *more])
        command = ("export", tmp_path / "yarn", "--out", out, "--run-dir", tmp_path / f"run-{out.name}")
        assert run(*command, "--no-check", *more) == 0
        return interop.load_hf(out).rope

    assert exported("--encoding", "YaRN") == exported("--encoding", "own") == spec
    assert exported("--encoding", "yarn", "--scale", "4") == dataclasses.replace(spec, scale=4.0)
    assert exported("--encoding", "linear") == rope.RopeSpec(
        "linear", head_dim=16, scale=8.0, train_length=64
    )


def test_options_that_have_no_flag(capsys):
    assert run("explain", "llama3", *SMALL, "--options", "low_freq_factor=2", "high_freq_factor=8") == 0
    assert "low_freq_factor=2.0, high_freq_factor=8.0" in capsys.readouterr().out


MISTAKES = {
    "no such file": (["explain", "nowhere/config.json"], "there is no file or directory nowhere/config.json"),
    "no such name": (["explain", "yam"], "unknown encoding 'yam'"),
    "not JSON": (["explain", "FOLDER/broken.json"], "broken.json is not JSON"),
    "no config.json": (["explain", "FOLDER"], "has no config.json"),
    "nothing to show": (["show"], "name at least one encoding"),
    "no such pair": (["show", "rope", "--pair", "64"], "there is no pair 64"),
    "an option of none": (["show", "rope", "--beta-fast", "2"], "none of rope takes --beta-fast"),
    "an option of no method": (["show", "yarn", "--options", "beta_fst=2"], "no method takes beta_fst"),
    "an option twice": (["show", "yarn", "--beta-fast", "2", "--options", "beta_fast=3"], "each name once"),
    "an option's kind": (["explain", "yarn", "--options", "truncate=3"], "truncate must be True or False"),
    "lengths turned round": (["show", "rope", "--length", "9"], "expected 0 < train_length < length"),
    "a position too far": (["numerics", "--last-position", "9"], "last position must be from 256"),
    "no checkpoint": (["export", "nowhere"], "nowhere is not a directory"),
    "no encoding": (["export", "CHECKPOINT", "--encoding", "yam"], "unknown encoding 'yam'"),
    "too short": (["export", "CHECKPOINT", "--length", "9"], "less than the training length 64"),
    "a scale that overflows": (["show", "ntk", "--scale", "1e308"], "--scale must be from 1 to 2^31"),
    "no head": (["show", "rope", "--head-dim", "0"], "--head-dim must be a whole number of at least 1"),
    "no training": (["explain", "yarn", "--train-length", "0"], "--train-length must be a whole number"),
    "more than memory": (["show", "rope", "--length", "1000000000"], "positions need about"),
    "an object store without its driver": (
        ["show", "rope", "--run-dir", "http://a/b"],
        "expected a local path",
    ),
    "a directory in the way": (["export", "CHECKPOINT", "--out", "CHECKPOINT"], "exists already"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(checkpoint, capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "broken.json").write_text("{")
    arguments, sentence = MISTAKES[name]
    places = {"FOLDER": "here", "CHECKPOINT": str(checkpoint)}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.strip().splitlines()) == 1, err
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
