"""Token files are built once and whole; a changed byte is found and the file built anew."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resonance_jax import data
from resonance_jax.data import tokens as tokens_module
from resonance_jax.data.corpora import Corpus

BYTES = data.tokenizer("bytes")


def corpus_of(*texts, name="made"):
    return Corpus(name, lambda: (data.Document(f"{i}", text) for i, text in enumerate(texts)), {})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("bos_eos", [256, 97, 257, 256, 98, 99, 257]),
        ("bos", [256, 97, 256, 98, 99]),
        ("eos", [97, 257, 98, 99, 257]),
        ("none", [97, 98, 99]),
    ],
)
def test_documents_are_concatenated_under_the_rule(tmp_path, rule, expected):
    file = data.token_file(corpus_of("a", "bc"), BYTES, tmp_path, rule)
    assert file.tokens.tolist() == expected and file.tokens.dtype == np.uint16 and len(file) == len(expected)
    assert [*file.document(0), *file.document(1)] == expected and file.document(1).dtype == np.int32
    assert file.header["rule"] == rule and file.header["vocab_size"] == 258
    assert file.header["tokenizer"] == {"name": "bytes", "fingerprint": BYTES.fingerprint}
    assert isinstance(file.tokens, np.memmap)


def test_the_same_tokens_are_built_once(tmp_path):
    calls = []
    for _ in range(2):
        data.token_file(corpus_of("a", "bc"), BYTES, tmp_path, progress=lambda *done: calls.append(done))
    assert calls == [(1, 3), (2, 7)]


def test_another_corpus_tokenizer_or_rule_is_another_file(tmp_path):
    other = data.tokenizer("bytes")
    other.fingerprint = "another"
    made = [
        data.token_file(corpus_of("a"), BYTES, tmp_path),
        data.token_file(corpus_of("b"), BYTES, tmp_path),
        data.token_file(corpus_of("a"), other, tmp_path),
        data.token_file(corpus_of("a"), BYTES, tmp_path, "none"),
    ]
    assert len({file.path for file in made}) == 4


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def documents():
        yield data.Document("0", "text")
        if broken:
            raise KeyboardInterrupt

    broken, corpus = False, Corpus("made", documents, {})
    assert corpus.fingerprint
    broken = True
    with pytest.raises(KeyboardInterrupt):
        data.token_file(corpus, BYTES, tmp_path)
    assert not list(tmp_path.iterdir())
    broken = False
    assert len(data.token_file(corpus, BYTES, tmp_path)) == 6


def test_a_kill_between_the_two_files_is_repaired(tmp_path):
    path = data.token_file(corpus_of("a"), BYTES, tmp_path).path
    path.with_suffix(".json").unlink()
    assert len(data.token_file(corpus_of("a"), BYTES, tmp_path)) == 3


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    for step in ("_npy_header", "move", "write_json"):
        with monkeypatch.context() as patched:
            patched.setattr(tokens_module, step, full)
            with pytest.raises(ValueError, match="cannot be written: No space left on device"):
                data.token_file(corpus_of("a"), BYTES, tmp_path)
        assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.json"))
    assert len(data.token_file(corpus_of("a"), BYTES, tmp_path)) == 3


def test_pretokenized_chunks_become_a_token_file(tmp_path):
    chunks = np.arange(6 * 64).reshape(6, 64)
    for shard in range(2):
        table = pa.table({"input_ids": list(chunks[shard::2]), "attention_mask": [[1]] * 3})
        pq.write_table(table, tmp_path / f"train-{shard}.parquet")
    file = data.token_file(data.corpus(tmp_path), None, tmp_path / "cache", rule="none")
    assert file.tokens.dtype == np.int32
    np.testing.assert_array_equal(file.tokens, np.concatenate([chunks[0::2].ravel(), chunks[1::2].ravel()]))
    heads = data.Batches(file, 8, 6, seed=0, mode="truncate", source_chunk=64)[0]
    np.testing.assert_array_equal(np.sort(heads, axis=0), chunks[:, :8])


def test_documents_with_text_and_tokens(tmp_path):
    documents = [data.Document("0", "ab", np.array([5], np.int32))]
    corpus = Corpus("both", lambda: iter(documents), {})
    assert data.token_file(corpus, BYTES, tmp_path, "none").tokens.tolist() == [97, 98]
    assert data.token_file(corpus, None, tmp_path, "none").tokens.tolist() == [5]


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    class Large(type(BYTES)):
        vocab_size = 128_256

    assert data.token_file(corpus_of("a"), Large(eos=128_001), tmp_path, "eos").tokens.tolist() == [
        97,
        128_001,
    ]


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no rule 'eos_bos'; known are auto, bos_eos, bos, eos, none"):
        data.token_file(corpus_of("a"), BYTES, tmp_path, "eos_bos")
    with pytest.raises(ValueError, match="the rule must be 'none'"):
        data.token_file(corpus_of("a"), None, tmp_path, "eos")
    with pytest.raises(ValueError, match="document 0 is text: a tokenizer is needed"):
        data.token_file(corpus_of("a"), None, tmp_path, "none")
    with pytest.raises(ValueError, match="needs BOS, which the tokenizer bytes does not put in front"):
        data.token_file(corpus_of("a"), data.tokenizer("bytes", bos="none"), tmp_path, "bos")
    with pytest.raises(ValueError, match="needs EOS, which the tokenizer bytes does not have"):
        data.token_file(corpus_of("a"), data.tokenizer("bytes", eos="none"), tmp_path, "bos_eos")
    foreign = Corpus("foreign", lambda: iter([data.Document("0", "", np.array([300], np.int32))]), {})
    with pytest.raises(
        ValueError, match=r"document 0 holds token 300, outside the vocabulary of the tokenizer bytes"
    ):
        data.token_file(foreign, BYTES, tmp_path)
    with pytest.raises(ValueError, match=r"There is no token file .*x\.npy"):
        data.TokenFile(tmp_path / "x")


# --- rules


@pytest.mark.parametrize(("bos", "eos", "rule"), [("auto", "auto", "bos_eos"), ("none", "auto", "eos")])
def test_the_rule_auto_follows_the_tokenizer(tmp_path, bos, eos, rule):
    tokenizer = data.tokenizer("bytes", bos=bos, eos=eos)
    auto = data.token_file(corpus_of("a"), tokenizer, tmp_path)
    assert (
        auto.header["rule"] == rule
        and data.token_file(corpus_of("a"), tokenizer, tmp_path, rule).path == auto.path
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("bos_eos", [256, 7, 257]), ("bos", [256, 7, 257]), ("eos", [256, 7, 257]), ("none", [256, 7, 257])],
)
def test_ids_that_have_bos_and_eos_get_no_second_ones(tmp_path, rule, expected):
    documents = [data.Document("0", "", np.array([256, 7, 257], np.int32))]
    file = data.token_file(Corpus("ids", lambda: iter(documents), {}), BYTES, tmp_path, rule)
    assert file.tokens.tolist() == expected


def test_documents_left_out_are_told_of_by_a_cached_file_too(tmp_path):
    items = [data.Document("0", "a"), *(data.LeftOut(f"{i}", f"reason {i}") for i in range(30))]
    corpus = Corpus("made", lambda: iter(items), {})
    for _ in range(2):
        header = data.token_file(corpus, BYTES, tmp_path).header
        assert (header["left_out"], header["reasons"][0], len(header["reasons"])) == (30, "reason 0", 20)


def test_tokens_that_a_model_does_not_have_are_found_without_reading_them(tmp_path):
    file = data.token_file(corpus_of("abc", "zz"), BYTES, tmp_path, "none")
    file.check_ids(123)
    expected = r"document 1 holds token 122, outside the vocabulary of the model m \(0 ... 121\)"
    with pytest.raises(ValueError, match=expected):
        file.check_ids(122, "the model m")


# --- how often the corpus is read


class Counted(Corpus):
    """A corpus that counts its readings."""

    def __init__(self, *texts):
        self.readings = 0

        def read():
            self.readings += 1
            return (data.Document(f"{i}", text) for i, text in enumerate(texts))

        super().__init__("counted", read, {})


def test_the_corpus_is_read_once_when_built_and_once_when_found(tmp_path):
    built, found, other = Counted("a", "b"), Counted("a", "b"), Counted("a", "c")
    first = data.token_file(built, BYTES, tmp_path)
    assert built.readings == 1 and built.describe()["documents"] == 2 and built.readings == 1
    assert data.token_file(found, BYTES, tmp_path).path == first.path and found.readings == 1
    assert data.token_file(found, BYTES, tmp_path).path == first.path and found.readings == 1
    assert data.token_file(built, BYTES, tmp_path, "none").path != first.path and built.readings == 2
    assert data.token_file(other, BYTES, tmp_path).path != first.path and other.readings == 2


def test_what_was_just_written_is_not_read_to_verify_it(tmp_path, monkeypatch):
    verified, checksum = [], tokens_module._checksum
    monkeypatch.setattr(tokens_module, "_checksum", lambda *of: verified.append(of) or checksum(*of))
    built = data.token_file(Counted("a", "b"), BYTES, tmp_path)
    assert not verified
    assert data.token_file(Counted("a", "b"), BYTES, tmp_path).path == built.path and len(verified) == 1


# --- damage


def pair(file):
    return file.path, file.path.with_suffix(".json")


def edited(**changes):
    def edit(body, header):
        header.write_text(json.dumps({**json.loads(header.read_text()), **changes}))

    return edit


def flipped(body, header):
    content = bytearray(body.read_bytes())
    content[-3] ^= 4
    body.write_bytes(content)


DAMAGE = {
    "a flipped bit": flipped,
    "a longer body": lambda body, header: body.write_bytes(body.read_bytes() + b"\0\0"),
    "a shorter body": lambda body, header: body.write_bytes(body.read_bytes()[:-2]),
    "an empty body": lambda body, header: body.write_bytes(b""),
    "a pickle": lambda body, header: body.write_bytes(b"\x80\x04\x95" * 60),
    "another header of the body": lambda body, header: body.write_bytes(
        body.read_bytes().replace(b"<u2", b"<i2").replace(b"(7,)", b"(6,)")
    ),
    "shuffled offsets": edited(offsets=[0, 7, 3]),
    "negative offsets": edited(offsets=[0, -1, 7]),
    "offsets that are no list": edited(offsets=3),
    "another rule": edited(rule="none"),
    "another version": edited(format=1),
    "no checksum": edited(checksum=None),
    "half a header": lambda body, header: header.write_text(header.read_text()[:40]),
    "an empty header": lambda body, header: header.write_text(""),
    "a header that is a list": lambda body, header: header.write_text("[]"),
    "a deep header": lambda body, header: header.write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_and_built_anew_with_a_word(tmp_path, damage):
    file = data.token_file(corpus_of("a", "bc"), BYTES, tmp_path)
    whole = [path.read_bytes() for path in pair(file)]
    DAMAGE[damage](*pair(file))
    assert [path.read_bytes() for path in pair(file)] != whole
    with pytest.raises(ValueError, match=r"delete the \.npy and the \.json") as error:
        data.TokenFile(file.path)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="It is built anew") as warned:
        again = data.token_file(corpus_of("a", "bc"), BYTES, tmp_path)
    assert len(warned) == 1
    assert again.tokens.tolist() == [256, 97, 257, 256, 98, 99, 257]
    assert [path.read_bytes() for path in pair(again)] == whole


@pytest.mark.parametrize("other", ["corpus", "tokenizer", "rule"])
def test_a_whole_pair_under_another_ones_name_is_built_anew(tmp_path, other):
    file = data.token_file(corpus_of("a"), BYTES, tmp_path)
    wrong = data.token_file(
        corpus_of("b" if other == "corpus" else "a"),
        data.tokenizer("bytes", eos=5) if other == "tokenizer" else BYTES,
        tmp_path / "other",
        "none" if other == "rule" else "auto",
    )
    for mine, theirs in zip(pair(file), pair(wrong), strict=True):
        mine.write_bytes(theirs.read_bytes())
    with pytest.warns(UserWarning, match="made from other text, or in another way. It is built anew"):
        assert data.token_file(corpus_of("a"), BYTES, tmp_path).tokens.tolist() == [256, 97, 257]


def test_every_single_bit_counts(tmp_path):
    file = data.token_file(corpus_of("a"), BYTES, tmp_path)
    for path in pair(file):
        content = path.read_bytes()
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                assert data.TokenFile(file.path).header == file.header  # white space between words may change
            except ValueError as error:
                assert "\n" not in str(error) and type(error) is ValueError
            else:
                assert path.suffix == ".json"
        path.write_bytes(content)


BUILD = """
import sys, time
from resonance_jax import data
def documents():
    yield data.Document("0", "text")
    print(flush=True)
    time.sleep(60)
data.token_file(data.Corpus("made", documents, {{}}), data.tokenizer("bytes"), {folder!r})
"""


def test_what_killed_builds_left_is_removed_but_not_what_living_ones_write(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", BUILD.format(folder=str(tmp_path))], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        process.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    processes[0].kill()
    processes[0].wait()
    old = tmp_path / f".made-0123.npy.{'0af3' * 8}"  # as versions before wrote it
    old.write_text("half")
    (tmp_path / ".hidden.npy").write_text("not ours")
    file = data.token_file(corpus_of("a"), BYTES, tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in pair(file)} - {".hidden.npy"}
    assert len(left) == 1 and left.pop().endswith(".tmp.npy")
    processes[1].kill()
    processes[1].wait()
    data.token_file(corpus_of("b"), BYTES, tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 1
