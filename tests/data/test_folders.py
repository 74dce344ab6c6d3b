"""Folders: shards of several kinds, what `datasets` saved, and nothing passed over in silence."""

import json
import os

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from resonance_jax import data


def names(folder, **options):
    return [document.name for document in data.corpus(folder, **options)]


def complaint(folder, **options):
    with pytest.raises(ValueError) as error:
        list(data.corpus(folder, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


def jsonl(path, *texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))


def saved(folder, *shards):
    """A folder as `datasets` saves it: streams, a state that lists them, facts about the fields."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, texts in enumerate(shards):
        table = pa.table({"text": list(texts)})
        listed.append({"filename": f"data-{number:05}-of-{len(shards):05}.arrow"})
        with (
            pa.OSFile(str(folder / listed[-1]["filename"]), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    (folder / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string", "_type": "Value"}}}')
    (folder / "state.json").write_text(
        json.dumps({"_data_files": listed, "_fingerprint": "0", "_split": "train"})
    )


def test_a_saved_dataset(tmp_path):
    saved(tmp_path, ["a", "b"], ["c"])
    (tmp_path / "builder.lock").write_text("")
    assert [d.text for d in data.corpus(tmp_path)] == ["a", "b", "c"]
    assert names(tmp_path)[2] == "data-00001-of-00002.arrow:0"


def test_a_saved_dataset_of_several_splits(tmp_path):
    saved(tmp_path / "train", ["a"])
    saved(tmp_path / "test", ["b"])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert names(tmp_path) == ["test/data-00000-of-00001.arrow:0", "train/data-00000-of-00001.arrow:0"]
    (tmp_path / "test" / "data-00000-of-00001.arrow").unlink()
    assert "test/state.json lists data-00000-of-00001.arrow, which is not there" in complaint(tmp_path)


def test_a_saved_dataset_is_what_its_state_lists(tmp_path):
    saved(tmp_path, ["a"], ["b"])
    (tmp_path / "cache-1234.arrow").write_bytes((tmp_path / "data-00000-of-00002.arrow").read_bytes())
    assert len(names(tmp_path)) == 2
    (tmp_path / "more.arrow").write_bytes((tmp_path / "data-00000-of-00002.arrow").read_bytes())
    assert "does not list more.arrow" in complaint(tmp_path)
    (tmp_path / "more.arrow").unlink()
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    assert "lists data-00001-of-00002.arrow, which is not there" in complaint(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": 3}')
    assert "state.json is a number, expected a JSON array" in complaint(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [3]}')
    assert "state.json is a number, expected a JSON object" in complaint(tmp_path)
    (tmp_path / "state.json").write_text("{")
    assert "state.json is not JSON" in complaint(tmp_path)


def test_shards_of_several_kinds_are_all_read(tmp_path):
    jsonl(tmp_path / "0.jsonl", "a")
    pq.write_table(pa.table({"text": ["b"]}), tmp_path / "1.parquet")
    (tmp_path / "2.json").write_text('[{"text": "c"}]')
    saved(tmp_path / "3", ["d"])
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "LICENSE").write_text("terms")
    (tmp_path / "figure.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".cache").mkdir()
    jsonl(tmp_path / ".cache" / "0.jsonl", "hidden")
    assert [d.text for d in data.corpus(tmp_path)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("other", ["notes.txt", "load.py", "tokenizer.json", "ids.bin", "more.md"])
def test_what_would_be_left_out_beside_records_is_named(tmp_path, other):
    jsonl(tmp_path / "0.jsonl", "a")
    (tmp_path / other).write_bytes(
        b'{"a": 1}' if other.endswith("json") else b"text\0" if "bin" in other else b"text"
    )
    message = complaint(tmp_path)
    assert "holds records (0.jsonl)" in message and other in message and "left out" in message


def test_a_shard_that_cannot_be_read_is_never_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for content, expected in ((b"PK\x03\x04", "zip archive"), ("x".encode("utf-16"), "UTF-16")):
        (tmp_path / "b").write_bytes(content)
        assert expected in complaint(tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "c.txt").symlink_to(tmp_path / "gone.txt")
    assert "c.txt is a link to nothing" in complaint(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "corpus")
    assert names(tmp_path / "corpus") == ["link/a.txt"]


def test_a_source_tree_is_text_with_its_json_and_without_its_pictures(tmp_path):
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "package.json").write_text('{\n "name": "x"\n}')
    (tmp_path / "cases.json").write_text('[{"input": 1}]')
    (tmp_path / "settings.json").write_text('{"a": 1, // a comment\n}')
    (tmp_path / "logo.bin").write_bytes(b"\0\1")
    (tmp_path / "state.json").write_text("[]")
    assert names(tmp_path) == ["README.md", "a.py", "cases.json", "package.json", "settings.json"]


def test_a_folder_of_objects_without_the_field_says_which_there_are(tmp_path):
    jsonl(tmp_path / "a.json", "one", "two", field="body")
    (tmp_path / "README.md").write_text("about")
    assert "its fields are body" in complaint(tmp_path)
    assert names(tmp_path, text_field="body") == ["a.json:1", "a.json:2"]


def test_a_folder_that_cannot_be_entered(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    walk = os.walk

    def refused(folder, onerror, **options):
        onerror(PermissionError(13, "Permission denied", str(folder / "private")))
        return walk(folder, **options)

    monkeypatch.setattr(os, "walk", refused)
    assert "private cannot be read: Permission denied" in complaint(tmp_path)


def test_a_folder_with_only_metadata_holds_nothing(tmp_path):
    saved(tmp_path)
    assert "holds no text file" in complaint(tmp_path)


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(path, "w") as file:
        file.write("text")
    for corpus in (tmp_path, os.fsdecode(path)):
        assert "'\\udcff.txt' is not UTF-8: rename the file" in complaint(corpus)
