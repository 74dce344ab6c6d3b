"""What a fine-tuning would take, as its user asks: the plan, and the search for a setting that fits."""

import sys

import pytest

from configs.finetune import PRESETS
from experiments.finetune import ahead, run
from resonance_jax.command import command_line, guarded, with_options
from resonance_jax.parallel import topology


def test_the_plan_says_whether_it_fits(capsys):
    _, config = PRESETS["7b-long-yarn"]
    for chip, code, words in (("v5p", 0, "It fits"), ("v5e", 1, "It does NOT fit")):
        assert guarded(run, with_options(config, plan=True, devices=8, chip=chip)) == code
        out = capsys.readouterr().out
        assert words in out and "residual stream" in out


def test_a_searched_plan_says_the_mesh_and_why_not_another(monkeypatch, capsys):
    monkeypatch.setattr(topology, "has_compiler", lambda: False)
    config = with_options(PRESETS["7b-long-yarn"][1], plan="auto", devices=16, chip="v6e")
    assert guarded(run, config) == 0
    out = capsys.readouterr().out
    last = out.strip().splitlines()[-1]
    assert last == "--data 1 --fsdp 16 --tensor 1 --sequence 1 --micro 16 --remat attention"
    assert "needs" in out and "GiB of 29.4 GiB" in out and "attention" in out and "Not compiled" in out
    assert guarded(run, with_options(config, plan=True, remat="full", micro=16)) == 0
    assert guarded(run, with_options(config, devices=2)) == 1
    assert "Nothing fits; the least is" in capsys.readouterr().out
    assert guarded(run, with_options(config, devices=None)) == 2
    assert "give --chip and --devices" in capsys.readouterr().err


def test_the_compiler_has_the_last_word_on_a_searched_plan(monkeypatch, capsys):
    monkeypatch.setattr(topology, "has_compiler", lambda: True)
    said = ["Used 31.90G of 31.25G hbm.", None]
    asked = []
    refusal = lambda setting: asked.append((setting.micro, setting.remat)) or said.pop(0)
    monkeypatch.setattr(ahead, "refusal_on", lambda name, *_: refusal if name == "v6e:4x4" else None)
    config = with_options(PRESETS["7b-short-yarn"][1], plan="auto", devices=16, chip="v6e")
    assert guarded(run, config) == 0 and len(asked) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "the compiler:" in out and "v6e:4x4: the compiler fits it too." in out
    assert f"--micro {asked[1][0]} --remat {asked[1][1]}" in out


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ("", False),
        ("--plan", True),
        ("--plan auto", "auto"),
        ("--plan --lr 1", True),
        ("--lr 1 --plan", True),
    ],
)
def test_plan_is_a_flag_or_auto(words, plan, monkeypatch):
    parsed = []
    monkeypatch.setattr(sys, "argv", ["finetune", "7b-long-yarn", *words.split()])
    monkeypatch.setattr(command_line, "leave_on_signals", lambda: None)
    monkeypatch.setattr(command_line, "leave", lambda code: None)
    command_line.main(lambda config: parsed.append(config.ahead.plan), PRESETS)
    assert parsed == [plan]
