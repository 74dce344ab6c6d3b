"""Corpora by path and the embedded one: documents, splits, fingerprints, a sentence for every bad input."""

import gzip
import hashlib
import json
import platform

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_jax import data


@pytest.fixture(scope="module")
def stdlib():
    return data.corpus("stdlib")


def texts(corpus):
    return {document.name: document.text for document in corpus}


def write_folder(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the text of {name}\n")


def write_jsonl(path, records, open_file=open):
    with open_file(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# --- the standard library


def test_stdlib_is_the_interpreters_library_without_tests(stdlib):
    names = [document.name for document in stdlib]
    assert names == sorted(set(names)) and len(names) > 300
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {
        "test",
        "tests",
        "idle_test",
        "encodings",
        "pydoc_data",
        "site-packages",
        "__pycache__",
    }
    assert all(name.endswith(".py") for name in names)


def test_stdlib_describes_itself_with_the_python_version(stdlib):
    facts = stdlib.describe()
    assert set(facts) == {"name", "documents", "bytes", "fingerprint", "python"}
    assert facts["python"] == platform.python_version()
    assert facts["bytes"] == sum(len(document.text.encode()) for document in stdlib)
    assert facts["fingerprint"] == data.corpus("stdlib").fingerprint


def test_stdlib_splits_are_a_partition_with_about_a_tenth_held_out(stdlib):
    train, heldout = texts(stdlib.split("train")), texts(stdlib.split("heldout"))
    assert {**train, **heldout} == texts(stdlib) and not train.keys() & heldout.keys()
    assert 0.05 < len(heldout) / (len(train) + len(heldout)) < 0.15


def test_long_documents_are_cut_for_training_only_on_request(stdlib):
    whole, cut = texts(stdlib.split("train")), texts(stdlib.split("train", max_bytes_per_document=65536))
    assert whole.keys() == cut.keys()
    assert all(whole[name].startswith(cut[name]) for name in whole)
    assert (
        max(len(text.encode()) for text in cut.values())
        <= 65536
        < max(len(t.encode()) for t in whole.values())
    )


def test_a_cut_falls_on_a_character_boundary(tmp_path):
    (tmp_path / "a.txt").write_text("aé" * 10, encoding="utf-8")
    assert [d.text for d in data.corpus(tmp_path / "a.txt").split("all", max_bytes_per_document=5)] == ["aéa"]


# --- paths


def test_the_last_tenth_of_a_single_text_is_held_out_at_a_line_break(tmp_path):
    text = "".join(f"line {i}\n" for i in range(200))
    (tmp_path / "book.txt").write_text(text)
    book = data.corpus(tmp_path / "book.txt")
    (train,), (heldout,) = book.split("train"), book.split("heldout")
    assert train.text + heldout.text == text and train.name == heldout.name == "book.txt"
    assert train.text.endswith("\n") and 0.08 < len(heldout.text) / len(text) < 0.12


def test_a_text_without_line_breaks_is_cut_at_nine_tenths(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    assert [len(d.text) for d in data.corpus(tmp_path / "a.txt").split("heldout")] == [10]


def test_a_folder_is_every_text_file_below_it_sorted(tmp_path):
    write_folder(tmp_path, ["b.txt", "a/z.md", ".git/config", "a/.hidden"])
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG\0\0")
    assert [document.name for document in data.corpus(tmp_path)] == ["a/z.md", "b.txt"]


def test_the_split_depends_on_names_alone(tmp_path):
    names = [f"{i}.txt" for i in range(60)]
    write_folder(tmp_path / "one", names)
    write_folder(tmp_path / "two", names + ["another.txt"])
    one, two = (texts(data.corpus(tmp_path / folder).split("heldout")).keys() for folder in ("one", "two"))
    assert one == two - {"another.txt"} and 0 < len(one) < 20


@pytest.mark.parametrize("count", range(2, 12))
def test_neither_split_of_several_documents_is_empty(tmp_path, count):
    write_folder(tmp_path, [f"{i}.txt" for i in range(count)])
    corpus = data.corpus(tmp_path)
    assert len(list(corpus.split("train"))) + len(list(corpus.split("heldout"))) == count
    assert list(corpus.split("train")) and list(corpus.split("heldout"))


def zstd_open(path, mode, encoding):
    import io

    return io.TextIOWrapper(pa.output_stream(path, compression="zstd"), encoding=encoding)


@pytest.mark.parametrize(("suffix", "open_file"), [("", open), (".gz", gzip.open), (".zst", zstd_open)])
def test_json_lines_plain_and_compressed(tmp_path, suffix, open_file):
    path = tmp_path / f"proof.jsonl{suffix}"
    write_jsonl(path, [{"text": "é\none", "meta": {}}, {"text": "two", "meta": {}}], open_file)
    assert texts(data.corpus(path)) == {f"proof.jsonl{suffix}:1": "é\none", f"proof.jsonl{suffix}:2": "two"}


def test_another_text_field(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"book": "one"}])
    assert [d.text for d in data.corpus(tmp_path / "a.jsonl", text_field="book")] == ["one"]


def test_parquet_text_and_tokens(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"], "meta": ["", ""]}), tmp_path / "a.parquet")
    assert texts(data.corpus(tmp_path / "a.parquet")) == {"a.parquet:0": "one", "a.parquet:1": "two"}
    pq.write_table(pa.table({"input_ids": [[1, 5, 2], [7]]}), tmp_path / "b.parquet")
    first, second = data.corpus(tmp_path / "b.parquet")
    np.testing.assert_array_equal(first.tokens, [1, 5, 2])
    assert first.tokens.dtype == second.tokens.dtype == np.int32 and first.text == ""


def test_a_folder_of_shards_reads_the_shards_alone(tmp_path):
    write_folder(tmp_path, ["README.md"])
    write_jsonl(tmp_path / "1.jsonl", [{"text": "b"}])
    write_jsonl(tmp_path / "0.jsonl", [{"text": "a", "input_ids": [3]}])
    assert texts(data.corpus(tmp_path)) == {"0.jsonl:1": "a", "1.jsonl:1": "b"}


def test_the_fingerprint_tells_names_and_texts_apart(tmp_path):
    def fingerprint(records):
        write_jsonl(tmp_path / "a.jsonl", records)
        return data.corpus(tmp_path / "a.jsonl").fingerprint

    seen = [
        fingerprint([{"text": "ab"}, {"text": "c"}]),
        fingerprint([{"text": "a"}, {"text": "bc"}]),
        fingerprint([{"text": "c"}, {"text": "ab"}]),
        fingerprint([{"text": "ab"}, {"text": "c", "input_ids": [1]}]),
        fingerprint([{"text": "aba.jsonl:2c"}]),
    ]
    assert len(set(seen)) == 5 and seen[0] == fingerprint([{"text": "ab"}, {"text": "c"}])


def test_the_split_to_score_where_none_is_named(stdlib, tmp_path):
    write_folder(tmp_path, [f"{i}.txt" for i in range(30)])
    mine = data.corpus(tmp_path)
    assert texts(mine.split()) == texts(mine) and mine.split().name == f"{tmp_path.name}/all"
    assert stdlib.default_split == "heldout" and stdlib.split().name == "stdlib/heldout"
    assert texts(mine.split("heldout").split()) == texts(mine.split("heldout"))


def counted(documents):
    """A corpus of documents, and the list to which every reading of it adds one."""
    readings = []

    def read():
        readings.append(1)
        yield from documents

    from resonance_jax.data.splits import split_by_name

    return data.Corpus("counted", read, split_by_name(read)), readings


@pytest.mark.parametrize("split", ["all", "train", "heldout"])
def test_a_split_is_read_once_and_its_facts_cost_no_more(split):
    corpus, readings = counted([data.Document(f"{i}", f"text {i}") for i in range(40)])
    part = corpus.split(split)
    assert len(list(part)) == part.describe()["documents"] and part.was_read and part.fingerprint
    assert len(readings) == 1


def slowly_split(names):
    """Which names are held out, by the rule as it reads: a tenth by hash, never none, never all."""
    rank = {name: int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "big") for name in names}
    heldout = {name for name in names if rank[name] % 10 == 0}
    if not heldout:
        return {min(names, key=rank.get)}
    return heldout - {max(names, key=rank.get)} if len(heldout) == len(names) else heldout


@given(st.lists(st.integers(0, 10_000).map(str), min_size=2, max_size=40, unique=True))
def test_splits_in_one_reading_are_those_of_the_rule(names):
    corpus, _ = counted([data.Document(name, "x") for name in names])
    heldout = slowly_split(names)
    assert [d.name for d in corpus.split("heldout")] == [name for name in names if name in heldout]
    assert [d.name for d in corpus.split("train")] == [name for name in names if name not in heldout]


def test_of_documents_that_would_all_be_held_out_one_is_not():
    names = [str(i) for i in range(1000) if slowly_split([str(i), "0"]) >= {str(i)}]
    names = [n for n in names if int.from_bytes(hashlib.sha1(n.encode()).digest()[:8], "big") % 10 == 0][:3]
    corpus, _ = counted([data.Document(name, "x") for name in names])
    assert (
        len(names) == 3 and len(list(corpus.split("heldout"))) == 2 and len(list(corpus.split("train"))) == 1
    )


def test_text_that_changes_between_two_readings_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    corpus = data.corpus(tmp_path / "a.txt")
    assert corpus.fingerprint
    (tmp_path / "a.txt").write_text("two")
    with pytest.raises(ValueError, match=r"a\.txt changed while it was being used"):
        list(corpus)


# --- documents without text


def test_what_holds_no_text_is_left_out_and_told_of(tmp_path):
    records = [
        {"text": "one"},
        {"text": None},
        {"text": ""},
        {"body": "b"},
        {"text": "half \ud800"},
        {"text": None, "input_ids": []},
        {"text": None, "input_ids": [5]},
        {"text": " "},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus, left_out = data.corpus(tmp_path / "a.jsonl"), []
    kept = list(corpus.documents(left_out.append))
    assert [(d.name, d.text) for d in kept] == [("a.jsonl:1", "one"), ("a.jsonl:7", ""), ("a.jsonl:8", " ")]
    assert kept[1].tokens.tolist() == [5]
    expected = {
        2: "is null",
        3: "is empty",
        4: "no field 'text'",
        5: "surrogate pair at character 5",
        6: "is null",
    }
    assert [each.name for each in left_out] == [f"a.jsonl:{number}" for number in expected]
    for each, (number, reason) in zip(left_out, expected.items(), strict=True):
        assert reason in each.reason and f"line {number} of" in each.reason
    with pytest.warns(
        data.LeftOutWarning, match=r"a\.jsonl: 5 document\(s\) left out; the first: .* is null"
    ):
        assert len(list(corpus)) == 3


def test_left_out_documents_belong_to_one_split_each():
    items = [data.Document(f"{i}", "x") if i % 2 else data.LeftOut(f"{i}", "why") for i in range(60)]
    corpus, _ = counted(items)
    found = {}
    for split in ("train", "heldout"):
        found[split] = []
        list(corpus.split(split).documents(found[split].append))
    assert sorted(found["train"] + found["heldout"], key=lambda each: int(each.name)) == items[::2]
    assert 0 < len(found["heldout"]) < 10


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    message = complaint(tmp_path / "a.jsonl")
    assert "is empty: it holds no text; 2 document(s) left out." in message and "line 1 of" in message


# --- bad input: one sentence each


def complaint(path, **options):
    with pytest.raises(ValueError) as error:
        list(data.corpus(path, **options))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_or_unknown(tmp_path):
    message = complaint(tmp_path / "nothing.txt")
    assert "nothing.txt" in message and "stdlib, pg19, gov_report/<config>, scrolls/gov_report" in message


def test_empty(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert "a.txt is empty" in complaint(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "a.jsonl is empty: it holds no text." in complaint(tmp_path / "a.jsonl")
    assert "no file or folder ''" in complaint("")
    assert "cannot be read: File name too long" in complaint("x" * 5000)
    assert "cannot be read: embedded null" in complaint("a\0b")
    (tmp_path / "folder").mkdir()
    assert "holds no text file" in complaint(tmp_path / "folder")


def test_not_utf8_names_the_file_and_the_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    message = complaint(tmp_path / "a.txt")
    assert "a.txt is not UTF-8" in message and "0xff at offset 3" in message
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    message = complaint(tmp_path / "a.jsonl")
    assert "line 2 of" in message and "offset 24" in message


def test_bad_records_name_the_line_or_row(tmp_path):
    def of(content):
        (tmp_path / "a.jsonl").write_bytes(content)
        return complaint(tmp_path / "a.jsonl")

    missing = of(b'\n{"body": "b", "meta": 1}\n')
    assert (
        "line 2 of" in missing and "'text'" in missing and "body, meta" in missing and "text_field" in missing
    )
    assert "line 1 of" in of(b"{'text': 1}\n")
    assert "line 2 of" in of(b'{"text": "a"}\n{"text": "b"\n')
    assert "element 0 of" in (found := of(b"[1, 2]\n")) and "a number, expected a JSON object" in found
    assert "line 1 of" in (found := of(b"[1]\n[2]\n")) and "a JSON array, expected a JSON object" in found
    assert "expected a string" in of(b'{"text": 3}\n')
    assert "expected a string" in of(b'{"text": ["a"], "input_ids": [1]}\n')
    assert "surrogate" in of(b'{"text": "\\ud800"}\n')
    assert "flat list of whole numbers" in of(b'{"input_ids": [1.5]}\n')
    assert "flat list of whole numbers" in of(b'{"input_ids": [[1], [2, 3]]}\n')
    assert "flat list of whole numbers" in of(b'{"input_ids": 7}\n')
    assert "flat list of whole numbers" in of(b'{"input_ids": "abc"}\n')
    assert "flat list of whole numbers" in of(b'{"input_ids": [true]}\n')
    assert "flat list of whole numbers" in of(b'{"input_ids": [1' + b"0" * 400 + b"]}\n")
    assert "flat list of whole numbers" in of(b'{"input_ids": ' + b"[" * 500 + b"]" * 500 + b"}\n")
    assert "outside" in of(b'{"input_ids": [-1]}\n')
    assert "outside" in of(b'{"input_ids": [2147483648]}\n')
    assert "thousands of digits" in of(b'{"input_ids": [1' + b"0" * 5000 + b"]}\n")
    assert "nested too deeply" in of(b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")


def test_broken_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    assert "not a parquet file" in complaint(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    assert "cannot be read to its end" in complaint(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"")[:10] + b"nonsense, not deflated")
    assert "cannot be read to its end" in complaint(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl.zst").write_bytes(b"not zstd")
    assert "line 1 of" in (found := complaint(tmp_path / "a.jsonl.zst")) and "is not JSON" in found
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "b.parquet")
    assert "no field 'text'" in complaint(tmp_path / "b.parquet")


def test_bad_options(stdlib, tmp_path):
    with pytest.raises(ValueError, match="no split 'test'; it has all, train, heldout"):
        stdlib.split("test")
    with pytest.raises(ValueError, match="at least 1"):
        stdlib.split("train", max_bytes_per_document=0)
    write_jsonl(tmp_path / "a.jsonl", [{"input_ids": [3]}, {"input_ids": [4]}])
    with pytest.raises(ValueError, match="already tokenized"):
        list(data.corpus(tmp_path / "a.jsonl").split("train", max_bytes_per_document=10))
