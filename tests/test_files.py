"""Files are whole or not there, on a disk and in an object store."""

import pytest

from resonance_jax.files import as_path, atomic, is_remote, read_json, upload, write_json
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
