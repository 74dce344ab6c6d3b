"""Options of nested configs: short names on the command line, in config.json and in Python."""

import dataclasses
import json
import signal
import sys

import pytest
from tyro.conf import OmitArgPrefixes

from resonance_jax.command import main, open_run, option_words, options_of, stated_options, with_options
from resonance_jax.command.run_folder import config_hash
from resonance_jax.settings import LoraConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A study."""

    steps: int = 3
    """Steps of the study, in a sentence
    of two lines."""
    lora: bool = False
    """Train adapters."""
    adapters: OmitArgPrefixes[LoraConfig] = dataclasses.field(default_factory=LoraConfig)
    optimizer: OmitArgPrefixes[OptimizerConfig] = dataclasses.field(default_factory=OptimizerConfig)
    run_dir: str | None = None
    """Where results go."""


PRESETS = {"one": ("The first.", Config(steps=5, adapters=LoraConfig(rank=3))), "two": ("Another.", Config())}


@pytest.fixture(autouse=True)
def own_signals():
    """A command in this process changes what Ctrl-C does; the tests' own way comes back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def parsed(monkeypatch, *arguments: str, config=PRESETS) -> tuple[Config | None, int]:
    """The config that main() hands to a command, and the exit code."""
    given = []
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    with pytest.raises(SystemExit) as end:
        main(given.append, config)
    return (given[0] if given else None), end.value.code


def test_names_are_flat_and_every_value_has_one():
    options = options_of(Config())
    assert list(options)[:4] == ["steps", "lora", "lora_rank", "lora_alpha"]
    assert options["lr"] == 2e-5 and options["lora_rank"] == 16 and "adapters" not in options


def test_options_are_changed_by_their_names():
    changed = with_options(Config(), lr=0.5, lora_rank=2, lora=True)
    assert changed == Config(lora=True, adapters=LoraConfig(rank=2), optimizer=OptimizerConfig(lr=0.5))
    with pytest.raises(TypeError, match="Config has no option rank"):
        with_options(Config(), rank=2)


def test_two_options_of_one_name_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Twice:
        lr: float = 1.0
        optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    with pytest.raises(TypeError, match="two options of the name 'lr'"):
        options_of(Twice())


def test_the_command_line_overrides_a_preset(monkeypatch):
    config, code = parsed(monkeypatch, "--lora-rank", "7", "--lora-norms", "--lr", "0.1")
    adapters = LoraConfig(rank=7, norms=True)
    assert code == 0 and config == Config(steps=5, adapters=adapters, optimizer=OptimizerConfig(lr=0.1))
    assert parsed(monkeypatch, "two") == (Config(), 0)
    assert parsed(monkeypatch, "--steps", "9", config=Config) == (Config(steps=9), 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lora-rank", "0"], "LoRA needs rank >= 1"),
        (["--schedule", "steep"], "unknown schedule 'steep'"),
        (["--rank", "2"], "--rank"),
    ],
)
def test_a_mistake_ends_with_2(monkeypatch, capsys, arguments, sentence):
    config, code = parsed(monkeypatch, *arguments)
    output = capsys.readouterr()
    assert config is None and code == 2 and sentence in " ".join((output.out + output.err).split())


def test_help_says_what_a_field_says(monkeypatch, capsys):
    _, code = parsed(monkeypatch, "one", "--help")
    assert code == 0
    out = capsys.readouterr().out
    words = " ".join(out.replace("│", " ").split())
    assert "Steps of the study, in a sentence of two lines." in out  # no break where the source has one
    assert "--lora-rank INT The adapters' rank r. (default: 3)" in words
    assert "--lr FLOAT Peak learning rate. (default: 2e-05)" in words and "optimizer options" in words


def test_a_run_folder_belongs_to_one_config(tmp_path):
    config = Config(run_dir=str(tmp_path / "run"))
    folder = open_run("study", config)
    assert json.loads((folder / "config.json").read_text())["lora_rank"] == 16
    assert open_run("study", config) == folder
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"another config \(lora_rank: 16 there, 2 here, lr: 2e-05 there"):
        open_run("study", with_options(config, lora_rank=2, lr=1.0))


def test_a_config_is_told_apart_from_every_other_but_not_by_its_folder():
    one = Config()
    others = [with_options(one, lr=1.0), with_options(one, lora_alpha=1.0), with_options(one, steps=1)]
    assert len({config_hash(config) for config in (one, *others)}) == 4
    assert config_hash(with_options(one, run_dir="elsewhere")) == config_hash(one)


def test_options_as_entries_and_as_words_lead_to_the_same_config(monkeypatch):
    stated = stated_options(["steps=7", "--lora=True", "lora-alpha=0.5", "run_dir=a=b", "freeze=('a','b')"])
    assert stated == {
        **{"steps": 7, "lora": True, "lora_alpha": 0.5},
        **{"run_dir": "a=b", "freeze": ("a", "b")},
    }
    words = option_words({**stated, "lora": False})
    assert words[:3] == ["--steps", "7", "--no-lora"] and words[-3:] == ["--freeze", "a", "b"]
    config, _ = parsed(monkeypatch, "two", *words)
    assert config == with_options(Config(), **{**stated, "lora": False})
    for wrong in ("steps", "=3"):
        with pytest.raises(ValueError, match="expected NAME=VALUE, got"):
            stated_options([wrong])
