"""What a run folder remembers."""

import dataclasses
import os
import subprocess
import sys
from typing import ClassVar

import pytest

from resonance_jax.command import default_folder, local_part, open_run, remember, stated_config
from resonance_jax.files import as_path


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 3
    run_dir: str | None = None


def test_other_text_is_refused(tmp_path):
    remember(tmp_path / "corpus.json", {"name": "a"})
    remember(tmp_path / "corpus.json", {"name": "a"})
    with pytest.raises(ValueError, match="the text has changed since the run"):
        remember(tmp_path / "corpus.json", {"name": "b"})


def test_a_folder_states_the_config_that_it_was_made_with(tmp_path):
    assert stated_config(tmp_path / "none", Config) is None
    folder = open_run("study", Config(steps=7, run_dir=str(tmp_path / "run")))
    assert stated_config(folder, Config) == Config(steps=7)


def test_a_folder_is_another_configs_once_something_was_computed(tmp_path):
    first, second = (Config(steps, str(tmp_path / "run")) for steps in (3, 4))
    open_run("study", first)
    folder = open_run("study", second)  # nothing was computed under the first one
    assert stated_config(folder, Config) == Config(steps=4)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"another config \(steps: 4 there, 3 here\)"):
        open_run("study", first)


@dataclasses.dataclass(frozen=True)
class Group:
    precision: str = "auto"


def test_a_folder_without_a_later_option_has_its_default(tmp_path):
    """As one of a version before --precision: the same folder by default, another run's for another value."""

    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        ADDED: ClassVar[tuple[str, ...]] = ("precision",)
        precision: str = "auto"

    where = str(tmp_path / "run")
    (open_run("study", Config(run_dir=where)) / "metrics.jsonl").write_text("")
    assert open_run("study", Later(run_dir=where)).name == "run"
    with pytest.raises(ValueError, match=r"\(precision: 'auto' there, 'bfloat16' here\)"):
        open_run("study", Later(precision="bfloat16", run_dir=where))

    @dataclasses.dataclass(frozen=True)
    class Nested(Config):
        ADDED: ClassVar[tuple[str, ...]] = ("precision",)
        group: Group = Group()

    kinds = (Config(), Later(), Nested(), Later(precision="bfloat16"), Nested(group=Group("bfloat16")))
    folders = [default_folder("study", c) for c in kinds]
    assert folders[0] == folders[1] == folders[2] != folders[3] == folders[4]
    assert stated_config(open_run("study", Later(run_dir=str(tmp_path / "new"))), Later).precision == "auto"


def test_a_folder_belongs_to_one_process(tmp_path):
    folder = open_run("study", Config(run_dir=str(tmp_path / "run")))
    code = """
import pathlib, sys
from resonance_jax.command.run_lock import hold
hold(pathlib.Path(sys.argv[1]))
"""
    other = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert f"is in use by process {os.getpid()} on" in other.stderr


def test_a_damaged_config_is_one_sentence_where_something_was_computed(tmp_path):
    folder = open_run("study", Config(run_dir=str(tmp_path / "run")))
    (folder / "config.json").write_text('{"steps": ')
    open_run("study", Config(run_dir=str(folder)))
    (folder / "config.json").write_text('{"steps": ')
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"config\.json"):
        open_run("study", Config(run_dir=str(folder)))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="not empty and not a run folder"):
        open_run("study", Config(run_dir=str(tmp_path)))


def test_only_a_folder_in_an_object_store_has_a_local_twin(tmp_path):
    assert local_part("study", Config(), tmp_path) == tmp_path
    twin = local_part("study", Config(), as_path("gs://bucket/run"))
    assert twin.name == f"{default_folder('study', Config()).name}-local"
