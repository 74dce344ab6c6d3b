"""Files are whole or not there, on a disk and in an object store."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_jax.files import as_path, atomic, is_remote, parse_json, read_json, upload, write_json
from resonance_jax.train.history import History
from tests.bucket import bucket


@pytest.mark.parametrize("where", ["disk", "gs"])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, where):
    with bucket(tmp_path):
        path = as_path("gs://b/run/x.json" if where == "gs" else tmp_path / "run" / "x.json")
        assert is_remote(path) == (where == "gs")
        write_json(path, {"a": 1})
        with pytest.raises(RuntimeError), atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
        assert read_json(path) == {"a": 1}
        assert [child.name for child in path.parent.iterdir()] == ["x.json"]


def test_a_folder_is_uploaded_with_its_config_last(tmp_path):
    source = tmp_path / "hf"
    (source / "deeper").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "deeper/z"):
        (source / name).write_text(name)
    with bucket(tmp_path / "store") as written:
        upload(source, as_path("gs://b/hf"))
        assert as_path("gs://b/hf/deeper/z").read_text() == "deeper/z"
    assert len(written) == 4 and written[-1] == "gs://b/hf/config.json"


@pytest.mark.parametrize("where", ["disk", "gs"])
def test_a_log_goes_on_from_the_checkpoint(tmp_path, where):
    with bucket(tmp_path) as written:
        path = as_path("gs://b/metrics.jsonl" if where == "gs" else tmp_path / "metrics.jsonl")
        history = History(path, 0)
        for step in (1, 2, 3):
            history.add({"step": step})
            history.flush(due=step == 2)
        assert len(path.read_text().splitlines()) == (2 if where == "gs" else 3)
        assert written == ([str(path)] * 2 if where == "gs" else [])  # begun, and with the checkpoint
        resumed = History(path, 2)
        assert resumed.records == [{"step": 1}, {"step": 2}]
        resumed.add({"step": 3, "again": True})
        resumed.flush(due=True)
        assert path.read_text().splitlines()[-1] == '{"step": 3, "again": true}'
        assert History(None, 0).records == []


# --- what killed processes leave

KILLED = """
import os, signal, sys
from resonance_jax.files import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(flush=True)
    {end}
"""


def writer(path, end):
    """A process that has begun to write `path`."""
    command = [sys.executable, "-c", KILLED.format(end=end), str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "loss.png"
    writer(path, "os.kill(os.getpid(), signal.SIGKILL)").wait()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".loss.png.") and left[0].name.endswith(".tmp.png")
    write_json(tmp_path / "other.json", 1)
    assert left[0].exists()
    with atomic(path) as temporary:
        assert temporary != left[0]
        temporary.write_text("whole")
    assert path.read_text() == "whole" and not left[0].exists()


def test_a_living_writer_keeps_its_file(tmp_path):
    path = tmp_path / "x.json"
    other = writer(path, "sys.stdin.readline()")
    (theirs,) = tmp_path.iterdir()
    write_json(path, "ours")
    assert theirs.exists()
    other.communicate(b"\n")
    assert other.returncode == 0 and path.read_text() == "half" and list(tmp_path.iterdir()) == [path]


def test_files_have_the_usual_permissions(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "b.json").write_text("1")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


# --- damaged JSON: one sentence each

DAMAGED = {
    "empty": (b"", "is empty, expected JSON"),
    "blank": (b" \n", "is empty, expected JSON"),
    "half": (b'{"a": [1, 2', "is not JSON: it breaks off at its end"),
    "half a string": (b'{"a": "b', "is not JSON: it breaks off at its end"),
    "not JSON": (b'{"a": 1,\n b: 2}', "is not JSON: 'b: 2}' at line 2, column 2 does not belong there"),
    "another type": (b"[1, 2]", "is a JSON array, expected a JSON object"),
    "a number": (b"3", "is a number, expected a JSON object"),
    "null": (b"null", "is null, expected a JSON object"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
    "huge": (b'{"a": 1' + b"0" * 5000 + b"}", "holds a whole number of thousands of digits"),
    "not UTF-8": (b'{"a": "\xe9"}', "is not UTF-8: byte 0xe9 at offset 7"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_one_sentence_that_says_what_to_do(tmp_path, damage):
    content, expected = DAMAGED[damage]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_json(tmp_path / "config.json", remedy="choose another folder")
    message = str(error.value)
    assert (
        expected in message
        and message.startswith(str(tmp_path))
        and message.endswith("choose another folder.")
    )
    assert "\n" not in message


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name, found in (
        ("pipe.json", "is a pipe"),
        ("none.json", "is missing"),
        (".", "is a folder"),
    ):
        with pytest.raises(ValueError, match=found):
            read_json(tmp_path / name)


def test_a_byte_order_mark_and_another_kind_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json", list) == [1]


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,0123456789eE+-.\\untrfals \n').map(str.encode))
def test_any_bytes_are_json_or_one_sentence(content):
    try:
        value = parse_json(content, "it")
    except ValueError as error:
        assert str(error).startswith("it ") and "\n" not in str(error) and type(error) is ValueError
    else:
        assert json.dumps(value) == json.dumps(json.loads(content.decode("utf-8-sig")))
