"""PG19, GovReport and SCROLLS: prepared by TFDS's own builders from raw files, then read back."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resonance_jax import data

tfds = pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")


@pytest.fixture(autouse=True)
def without_tensorflow():
    """Nothing here may import TensorFlow, even where it is installed."""
    before = "tensorflow" in sys.modules
    yield
    assert before or "tensorflow" not in sys.modules


def prepare(name, data_dir, raw, monkeypatch, file_format="array_record"):
    """Run the real builder on `raw`, the folder that its download would have given."""
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, url: tfds.core.Path(raw)
    )
    tfds.builder(name, data_dir=data_dir, file_format=file_format, try_gcs=False).download_and_prepare()


def write_gov_report(folder, subset, field):
    section = {"section_title": "Überblick", "paragraphs": ["One.", "Two."], "subsections": []}
    (folder / "gov-report" / "split_ids").mkdir(parents=True)
    (folder / "gov-report" / subset).mkdir()
    for split, ids in {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}.items():
        (folder / "gov-report" / "split_ids" / f"{subset}_{split}.ids").write_text("\n".join(ids) + "\n")
        for id in ids:
            report = {field: section if subset == "crs" else [section], "summary": [], "highlight": []}
            strings = ("title", "released_date", "url", "fastfact", "published_date")
            record = {"id": id, **report, **dict.fromkeys(strings, "x")}
            (folder / "gov-report" / subset / f"{id}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("subset", "field"), [("crs", "reports"), ("gao", "report")])
def test_gov_report(tmp_path, monkeypatch, subset, field):
    import tensorflow_datasets.summarization.gov_report  # noqa: F401

    write_gov_report(tmp_path / "raw", subset, field)
    name = f"gov_report/{subset}_whitespace"
    prepare(name, tmp_path / "tfds", tmp_path / "raw", monkeypatch)
    corpus = data.corpus(name, data_dir=tmp_path / "tfds")
    assert {document.name for document in corpus} == {"train/a", "train/b", "validation/c", "test/d"}
    assert {document.text for document in corpus} == {"Überblick\nOne.\nTwo."}
    assert [d.name for d in corpus.split("heldout")] == [d.name for d in corpus.split("test")] == ["test/d"]
    assert corpus.split("train").describe()["documents"] == 2


def test_scrolls(tmp_path, monkeypatch):
    import tensorflow_datasets.text.scrolls  # noqa: F401

    (tmp_path / "raw" / "gov_report").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        record = {
            "id": "r",
            "pid": f"r_{split}",
            "input": "a report",
            "output": None if split == "test" else "s",
        }
        (tmp_path / "raw" / "gov_report" / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
    prepare("scrolls/gov_report", tmp_path / "tfds", tmp_path / "raw", monkeypatch)
    (document,) = data.corpus("scrolls/gov_report", data_dir=tmp_path / "tfds").split("test")
    assert (document.name, document.text) == ("test/r_test", "a report")


def test_pg19(tmp_path, monkeypatch):
    import os

    from tensorflow_datasets.datasets.pg19 import pg19_dataset_builder

    gfile = SimpleNamespace(
        GFile=lambda path, mode="r": io.StringIO(Path(path).read_text()), listdir=os.listdir
    )
    monkeypatch.setattr(pg19_dataset_builder, "tf", SimpleNamespace(io=SimpleNamespace(gfile=gfile)))
    monkeypatch.setattr(pg19_dataset_builder, "_DATA_DIR", tmp_path / "raw")
    for split, id in {"train": 1, "validation": 2, "test": 3}.items():
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / "raw" / split / f"{id}.txt").write_text(f"\nBook {id}\n")
    (tmp_path / "raw" / "metadata.csv").write_text("".join(f"{id},Title,1900,link\n" for id in (1, 2, 3)))
    prepare("pg19", tmp_path / "tfds", tmp_path / "raw", monkeypatch)
    corpus = data.corpus("pg19", data_dir=tmp_path / "tfds")
    assert [(d.name, d.text) for d in corpus] == [
        ("train/1", "Book 1"),
        ("validation/2", "Book 2"),
        ("test/3", "Book 3"),
    ]


@pytest.mark.parametrize("name", ["gov_report/crs_html", "scrolls/gov_report"])
def test_a_fresh_process_finds_the_builders(tmp_path, name):
    """TFDS lists these two only after their module was imported, which the other tests here have done."""
    code = f"from resonance_jax import data; data.corpus({name!r}, data_dir={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"ValueError: The corpus {name} is not prepared at" in done.stderr


def test_what_is_not_there_is_said(tmp_path):
    for name in ("pg19", "gov_report/crs_html", "scrolls/gov_report"):
        with pytest.raises(ValueError, match=f"{name} is not prepared at .* point data_dir to it"):
            data.corpus(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match="no corpus 'gov_report/crs'; TFDS has gov_report/crs_whitespace"):
        data.corpus("gov_report/crs", data_dir=tmp_path)


def test_a_copy_in_a_format_that_needs_tensorflow(tmp_path, monkeypatch):
    write_gov_report(tmp_path / "raw", "crs", "reports")
    prepare("gov_report/crs_html", tmp_path, tmp_path / "raw", monkeypatch)
    info = next(tmp_path.glob("gov_report/**/dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="cannot be read without TensorFlow"):
        data.corpus("gov_report/crs_html", data_dir=tmp_path)


def test_a_shard_that_was_cut_off_leaves_documents_out_and_never_makes_any_up(tmp_path, monkeypatch):
    import tensorflow_datasets.summarization.gov_report  # noqa: F401

    write_gov_report(tmp_path / "raw", "crs", "reports")
    prepare("gov_report/crs_whitespace", tmp_path / "tfds", tmp_path / "raw", monkeypatch)
    (shard,) = tmp_path.glob("tfds/gov_report/*/*/*-validation.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    corpus, left_out = data.corpus("gov_report/crs_whitespace", data_dir=tmp_path / "tfds"), []
    kept = list(corpus.documents(left_out.append))
    assert {d.name for d in kept} == {"train/a", "train/b", "test/d"}
    assert all(d.text == "Überblick\nOne.\nTwo." for d in kept)
    assert [each.reason for each in left_out] == ["The field 'reports' of record 0 of validation is null."]
    with pytest.raises(ValueError, match="holds no text; 1 document"):
        list(corpus.split("validation"))


@pytest.mark.parametrize("damaged", ["dataset_info.json", "*-test.array_record*"])
def test_a_damaged_copy_is_one_sentence(tmp_path, monkeypatch, damaged):
    import tensorflow_datasets.summarization.gov_report  # noqa: F401

    write_gov_report(tmp_path / "raw", "crs", "reports")
    prepare("gov_report/crs_whitespace", tmp_path / "tfds", tmp_path / "raw", monkeypatch)
    (path,) = tmp_path.glob(f"tfds/gov_report/*/*/{damaged}")
    path.write_bytes(b"\xff\0")
    with pytest.raises(
        ValueError, match=r"prepared copy of gov_report/crs_whitespace.* prepare it again"
    ) as error:
        list(data.corpus("gov_report/crs_whitespace", data_dir=tmp_path / "tfds"))
    assert "\n" not in str(error.value)
