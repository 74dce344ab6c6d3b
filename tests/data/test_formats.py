"""A file is read for what its content is: formats, compression, byte order marks; bad files."""

import gzip
import io
import json
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from resonance_jax import data

TEXTS = ["One é.\n", "Two.\r\nlines", "Three"]
TABLE = pa.table({"meta": [1, 2, 3], "text": TEXTS})
BOM = b"\xef\xbb\xbf"


def parquet(table=TABLE):
    pq.write_table(table, stream := io.BytesIO())
    return stream.getvalue()


def arrow(opened, table=TABLE):
    with opened(stream := io.BytesIO(), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return stream.getvalue()


def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


RECORDS = [{"meta": i, "text": text} for i, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
CONTENT = {
    "json lines": LINES,
    "json lines of windows": BOM + LINES.replace(b"\n", b"\r\n"),
    "json array": json.dumps(RECORDS).encode(),
    "json array over lines": b"\n " + json.dumps(RECORDS, indent=1).encode(),
    "parquet": parquet(),
    "arrow stream": arrow(pa.ipc.new_stream),
    "arrow file": arrow(pa.ipc.new_file),
}
PACKED = {"": lambda content: content, "gzip": gzip.compress, "zstd": zstd}


def read(path, **options):
    return [document.text for document in data.corpus(path, **options)]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", CONTENT)
@pytest.mark.parametrize("name", ["a", "a.json", "a.txt.gz", "a.data", "part-00000-of-00002"])
def test_records_are_told_by_content(tmp_path, kind, packed, name):
    (tmp_path / name).write_bytes(PACKED[packed](CONTENT[kind]))
    assert read(tmp_path / name) == TEXTS
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize("packed", PACKED)
def test_text_keeps_its_line_ends_and_loses_its_mark(tmp_path, packed):
    for name in ("a.txt", "a.txt.gz", "a"):
        (tmp_path / name).write_bytes(PACKED[packed](BOM + b"ab\r\nc\rd\n" + BOM))
        assert read(tmp_path / name) == ["ab\r\nc\rd\n\ufeff"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.py", b'{"text": "is a dict"}\n{"text": "too"}\n'),
        ("a.md", b'[{"text": "an example"}]\n'),
        ("a.txt", b"{in braces} a text begins\nand goes on"),
        ("a.txt", b"[1] A reference.\n"),
        ("a.txt", b'{"text": "quoted"} and so on\n'),
        ("a.txt", b'{"text": "a line of JSON"}\nand a line of text\n'),
        ("a.txt", b'{"title": "no field of text"}\n{"title": "none"}\n'),
        ("a", b'[{"title": "no field of text"}]'),
        ("a", b"[1, 2]"),
        ("a", "[é] not UTF-8".encode()),
    ],
)
def test_text_that_looks_like_json_stays_text(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == [content.decode()]


def test_one_object_over_several_lines_is_one_record(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "one", "meta": []}, indent=2))
    assert [(d.name, d.text) for d in data.corpus(tmp_path / "a.json")] == [("a.json:1", "one")]


def test_marks_of_files_that_were_joined_are_dropped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BOM + LINES + BOM + b"\n" + BOM + LINES)
    assert read(tmp_path / "a.jsonl") == TEXTS * 2


def test_several_streams_in_one_file(tmp_path):
    for packed in (gzip.compress, zstd):
        (tmp_path / "a").write_bytes(packed(LINES) + packed(LINES))
        assert read(tmp_path / "a") == TEXTS * 2


def test_columns_of_ids_in_every_form_of_list(tmp_path):
    ids = [[1, 2], [3, 4]]
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int32(), 2)):
        table = pa.table({"input_ids": pa.array(ids, kind)})
        for content in (parquet(table), arrow(pa.ipc.new_stream, table)):
            (tmp_path / "a").write_bytes(content)
            assert [d.tokens.tolist() for d in data.corpus(tmp_path / "a")] == ids


def test_rows_without_text_or_ids_are_left_out(tmp_path):
    table = pa.table({"text": ["a", None, "", None], "input_ids": [None, None, [], [7]]})
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    kept = list(data.corpus(tmp_path / "a.parquet").documents(left_out := [].append))
    assert left_out is not None and [(d.text, d.tokens is None) for d in kept] == [("a", True), ("", False)]


def test_a_dictionary_of_texts_and_large_texts(tmp_path):
    for column in (pa.array(TEXTS).dictionary_encode(), pa.array(TEXTS, pa.large_string())):
        (tmp_path / "a").write_bytes(parquet(pa.table({"text": column})))
        assert read(tmp_path / "a") == TEXTS


# --- bad files: one sentence each


def complaint(path, **options):
    with pytest.raises(ValueError) as error:
        list(data.corpus(path, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04junk", "a zip archive: unpack it first"),
        (b"BZh91AY&SYjunk", "compressed by bzip2"),
        (b"\xfd7zXZ\0junk", "compressed by xz"),
        (b"name" + bytes(253) + b"ustar", "a tar archive"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        ("naïve".encode("utf-16"), "UTF-16 or UTF-32"),
        (b"\xfe\xff" + "naïve".encode("utf-16-be"), "UTF-16 or UTF-32"),
        (gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "compressed twice"),
        (gzip.compress(b"text" * 100, mtime=0)[:-4], "cannot be read to its end"),
        (zstd(os.urandom(5000))[:-9], "cannot be read to its end"),
        (b"abc\xff", "is not UTF-8: byte 0xff at offset 3"),
        (BOM + b"abc\xff", "is not UTF-8: byte 0xff at offset 6"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, content, expected):
    for name in ("a.txt", "a", "a.jsonl"):
        (tmp_path / name).write_bytes(content)
        message = complaint(tmp_path / name)
        assert str(tmp_path / name) in message and expected in message
        (tmp_path / name).unlink()


def test_a_name_that_says_table_is_held_to_it(tmp_path):
    for name in ("a.parquet", "a.arrow", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"no table")
        assert "not a parquet file or an arrow file" in complaint(tmp_path / name)


def test_a_json_file_that_is_no_json(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a",\n "b": }')
    assert "at line 2, column 7 does not belong there" in complaint(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("text")
    assert "a.json is not JSON" in complaint(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"title": "a"}')
    assert "its fields are title" in complaint(tmp_path / "a.json")


@pytest.mark.parametrize(
    "column", [[1, 2], ["a", "b"], [[1.5], [2.0]], [[1, None], [2]], [[[1]], [[2]]], [-1, 3]]
)
def test_a_column_that_is_no_list_of_ids(tmp_path, column):
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"input_ids": column})))
    assert "is not a flat list of whole numbers" in complaint(tmp_path / "a.parquet")


def test_a_column_that_is_no_text(tmp_path):
    for column in ([1, 2], [["a"], ["b"]], [b"a", b"b"]):
        (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": column})))
        assert "row 0 of" in (message := complaint(tmp_path / "a.parquet")) and "expected a string" in message


def test_pipes_and_devices_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert "is a pipe or a device" in complaint(path)
    assert "is a pipe or a device" in complaint(tmp_path)


@pytest.mark.parametrize("kind", [*CONTENT, "gzip", "zstd"])
def test_mutated_files_are_read_or_refused_in_one_sentence(tmp_path, kind):
    """Bytes flipped, cut out and cut off: never another exception, and never an empty corpus."""
    content = CONTENT[kind] if kind in CONTENT else PACKED[kind](LINES)
    rng = random.Random(kind)
    for _ in range(150):
        mutated = bytearray(content)
        match rng.randrange(4):
            case 0:
                mutated = mutated[: rng.randrange(len(mutated))]
            case 1:
                begin = rng.randrange(len(mutated))
                del mutated[begin : begin + rng.randrange(1, 9)]
            case _:
                for _ in range(rng.randrange(1, 4)):
                    mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        (tmp_path / "a").write_bytes(mutated)
        try:
            documents = list(data.corpus(tmp_path / "a").documents(lambda left_out: None))
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 600
        else:
            assert any(d.text or np.size(d.tokens) for d in documents)
