"""Journals: killed at any byte they go on; other inputs and damage never get in."""

import json

import pytest

from resonance_jax.evaluate.journal import Journal

RECORDS = [{"id": f"q{i}", "said": "é\u2028\n" * i, "right": i % 2} for i in range(5)]
MADE_BY = {"weights": "a", "encoding": ["b", 1]}


def plain(journal):
    return [{name: record[name] for name in RECORDS[0]} for record in journal.records]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "a" / "cells.jsonl", MADE_BY)
    journal.append(RECORDS[0])
    journal.extend(RECORDS[1:])
    return journal.path


def test_what_was_written_is_read_again(path):
    assert plain(Journal(path, {"encoding": ["b", 1], "weights": "a"})) == RECORDS


def test_cut_at_any_byte_it_keeps_whole_lines_and_goes_on(path):
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        journal = Journal(path, MADE_BY)
        whole = content[:size].count(b"\n")
        assert plain(journal) == RECORDS[:whole]
        journal.extend(RECORDS[whole:])
        assert path.read_bytes() == content


def test_records_of_other_inputs_are_set_aside(path):
    with pytest.warns(UserWarning, match="other inputs"):
        journal = Journal(path, MADE_BY | {"weights": "c"})
    assert journal.records == []
    journal.append(RECORDS[2])
    assert plain(Journal(path, MADE_BY | {"weights": "c"})) == [RECORDS[2]]
    (aside,) = path.parent.glob("cells.jsonl.*")
    assert [json.loads(line)["id"] for line in aside.read_bytes().splitlines()] == [r["id"] for r in RECORDS]


def test_a_changed_line_is_dropped(path):
    lines = path.read_bytes().decode().split("\n")
    lines = [f"{line}\n" for line in lines if line]
    lines[2] = lines[2].replace('"right": 0', '"right": 1')
    lines[3] = "[" * 100_000 + "\n"
    path.write_text("".join(lines))
    with pytest.warns(UserWarning, match="2 damaged"):
        assert plain(Journal(path, MADE_BY)) == [RECORDS[0], RECORDS[1], RECORDS[4]]
    assert plain(Journal(path, MADE_BY)) == [RECORDS[0], RECORDS[1], RECORDS[4]]


def test_a_line_that_is_there_twice_counts_once(path):
    content = path.read_bytes()
    path.write_bytes(content + content)
    assert plain(Journal(path, MADE_BY)) == RECORDS
    assert path.read_bytes() == content
