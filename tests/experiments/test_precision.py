"""Every command that computes with a model sets --precision first, and its results belong to it."""

import dataclasses
import importlib

import jax
import pytest

from configs import finetune, from_scratch, leval, passkey, perplexity, posgen, quickstart
from experiments.from_scratch import identity
from resonance_jax.command import guarded, with_options
from resonance_jax.parallel import topology

CONFIGS = {
    "finetune": (dataclasses.replace(finetune.CPU, dtype="bfloat16"), ("bfloat16",)),
    "from_scratch": (from_scratch.Config(), ()),
    "leval": (leval.Config(checkpoint="any", data=".", dtype="bfloat16"), ("bfloat16",)),
    "passkey": (passkey.PRESETS["cpu"][1], ("float32",)),
    "perplexity": (perplexity.Config(checkpoints=("any",), dtype="bfloat16"), ("bfloat16",)),
    "posgen": (posgen.PRESETS["smoke"][1], ()),
    "quickstart": (quickstart.Config(), ()),
}


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """The arguments of use_precision, at which every command stops."""
    found = []

    def stop(*arguments):
        found.append(arguments)
        raise KeyboardInterrupt

    for name in CONFIGS:
        module = importlib.import_module(
            "experiments.posgen.study" if name == "posgen" else f"experiments.{name}"
        )
        monkeypatch.setattr(module, "use_precision", stop)
    monkeypatch.setattr("experiments.finetune.ahead.use_precision", stop)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_command_sets_it(name, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, more = CONFIGS[name]
    run = importlib.import_module(f"experiments.{name}").run
    assert guarded(run, dataclasses.replace(config, precision="tensorfloat32")) == 130
    assert calls == [("tensorfloat32", *more)] and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("name", ["finetune", "perplexity"])
def test_what_is_compiled_ahead_is_for_a_tpu(name, calls, monkeypatch):
    monkeypatch.setattr(topology, "without_a_tpu", lambda: None)
    config = with_options(CONFIGS[name][0], dtype="float32", compile="v5e:2x2")
    assert guarded(importlib.import_module(f"experiments.{name}").run, config) == 130
    assert calls == [("auto", "float32", "tpu")]


def test_a_result_belongs_to_the_precision_and_older_ones_to_none():
    text = {"train": {"fingerprint": "a"}, "heldout": {"fingerprint": "b"}}
    plain = identity(from_scratch.Config(), text)
    assert plain["precision"] == "float32" and "precision of products" not in plain
    assert "precision" not in plain["options"]
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    assert identity(from_scratch.Config(), text) == {**plain, "precision of products": "bfloat16"}
