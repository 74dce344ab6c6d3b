"""Token files are built once and whole; batches depend on (seed, step) alone."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_jax import data
from resonance_jax.data import tokens as tokens_module
from resonance_jax.data.corpora import Corpus

BYTES = data.tokenizer("bytes")


def corpus_of(*texts, name="made"):
    return Corpus(name, lambda: (data.Document(f"{i}", text) for i, text in enumerate(texts)), {})


def counting(tmp_path, total):
    """A token file of 0, 1, 2, ..., so that a chunk tells where it came from."""
    documents = [data.Document("0", "", np.arange(total, dtype=np.int32))]
    return data.token_file(Corpus("counting", lambda: iter(documents), {}), None, tmp_path, rule="none")


# --- token files


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

    monkeypatch.setattr(tokens_module, "_write_header", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        data.token_file(corpus_of("a"), BYTES, tmp_path)
    assert not list(tmp_path.iterdir())


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
        vocab_size, eos_id = 128_256, 128_001

    assert data.token_file(corpus_of("a"), Large(), tmp_path, "eos").tokens.tolist() == [97, 128_001]


def test_bad_input_is_one_sentence(tmp_path):
    class NoBos(type(BYTES)):
        bos_id = None

    with pytest.raises(ValueError, match="no rule 'eos_bos'; known are bos_eos, bos, eos, none"):
        data.token_file(corpus_of("a"), BYTES, tmp_path, "eos_bos")
    with pytest.raises(ValueError, match="the rule must be 'none'"):
        data.token_file(corpus_of("a"), None, tmp_path)
    with pytest.raises(ValueError, match="document 0 is text: a tokenizer is needed"):
        data.token_file(corpus_of("a"), None, tmp_path, "none")
    with pytest.raises(ValueError, match="needs BOS, which the tokenizer bytes does not have"):
        data.token_file(corpus_of("a"), NoBos(), tmp_path)
    foreign = Corpus("foreign", lambda: iter([data.Document("0", "", np.array([300], np.int32))]), {})
    with pytest.raises(ValueError, match=r"token 300, outside the vocabulary of bytes \(258\)"):
        data.token_file(foreign, BYTES, tmp_path)
    with pytest.raises(ValueError, match=r"There is no token file .*x\.npy"):
        data.TokenFile(tmp_path / "x")


def test_a_damaged_file_is_refused(tmp_path):
    path = data.token_file(corpus_of("a"), BYTES, tmp_path).path
    header = json.loads(path.with_suffix(".json").read_text())
    for content in (json.dumps({**header, "offsets": [0, 99]}), json.dumps({**header, "format": 0}), "{"):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(ValueError, match="delete"):
            data.TokenFile(path)


# --- batches


@st.composite
def settings_of_batches(draw):
    length = draw(st.integers(1, 9))
    mode = draw(st.sampled_from(["split", "truncate"]))
    source_chunk = draw(st.integers(length, 12))
    total = draw(st.integers(source_chunk, 300))
    options = {"length": length, "batch_size": draw(st.integers(1, 12)), "seed": draw(st.integers(0, 2**32))}
    return total, {**options, "mode": mode, "source_chunk": source_chunk}


class InMemory:
    """As much of a token file as batches use."""

    def __init__(self, total):
        self.tokens, self.header = np.arange(total, dtype=np.int32), {"corpus": {"name": "counting"}}

    def __len__(self):
        return len(self.tokens)


@given(settings_of_batches())
def test_every_chunk_comes_once_an_epoch(setting):
    total, options = setting
    batches = data.Batches(InMemory(total), **options)
    stride = options["length"] if options["mode"] == "split" else options["source_chunk"]
    assert batches.chunks == total // stride
    rows = np.concatenate([batches[step] for step in range(2 * batches.steps_per_epoch)])
    for epoch in range(2):
        chunks = rows[epoch * batches.chunks : (epoch + 1) * batches.chunks]
        assert sorted(chunks[:, 0] // stride) == list(range(batches.chunks))
        np.testing.assert_array_equal(
            chunks - chunks[:, :1], np.arange(options["length"])[None].repeat(len(chunks), 0)
        )
        assert not (chunks[:, 0] % stride).any()


@given(settings_of_batches(), st.integers(0, 50), st.data())
def test_any_split_over_processes_reads_the_same_batch(setting, step, draw):
    total, options = setting
    batch = data.Batches(InMemory(total), **options)[step]
    assert batch.shape == (options["batch_size"], options["length"]) and batch.dtype == np.int32
    cuts = sorted(draw.draw(st.lists(st.integers(0, options["batch_size"]), max_size=4)))
    bounds = [0, *cuts, options["batch_size"]]
    parts = [
        data.Batches(InMemory(total), **options).rows(step, *bounds[i : i + 2])
        for i in range(len(bounds) - 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), batch)


@given(settings_of_batches(), st.integers(0, 30))
def test_a_fresh_reader_goes_on_at_any_step(setting, step):
    total, options = setting
    used = data.Batches(InMemory(total), **options)
    seen = [used[s] for s in range(step + 1)]
    np.testing.assert_array_equal(data.Batches(InMemory(total), **options)[step], seen[-1])


def test_the_order_never_changes(tmp_path):
    batches = data.Batches(counting(tmp_path, 40), 4, 5, seed=3)
    assert batches.order(0).tolist() == ORDER_OF_SEED_3[0] and batches.order(1).tolist() == ORDER_OF_SEED_3[1]
    assert (batches[0][:, 0] // 4).tolist() == ORDER_OF_SEED_3[0][:5]
    other = data.Batches(counting(tmp_path, 40), 4, 5, seed=4)
    assert other.order(0).tolist() != ORDER_OF_SEED_3[0]


ORDER_OF_SEED_3 = [[0, 1, 2, 7, 5, 6, 9, 8, 4, 3], [5, 8, 9, 6, 3, 7, 0, 1, 2, 4]]


def test_bad_batches_are_one_sentence(tmp_path):
    file = counting(tmp_path, 100)
    with pytest.raises(ValueError, match="counting has 100 tokens, fewer than one chunk of 256"):
        data.Batches(file, 256, 1, seed=0)
    with pytest.raises(ValueError, match="fewer than one chunk of 65536"):
        data.Batches(file, 8, 1, seed=0, mode="truncate")
    with pytest.raises(ValueError, match="at least as long, not 4"):
        data.Batches(file, 8, 1, seed=0, mode="truncate", source_chunk=4)
    with pytest.raises(ValueError, match="'split' or 'truncate', not 'pack'"):
        data.Batches(file, 8, 1, seed=0, mode="pack")
    with pytest.raises(ValueError, match="seed >= 0"):
        data.Batches(file, 8, 1, seed=-1)
    with pytest.raises(ValueError, match="no rows 0 to 3 of step 0 in batches of 2"):
        data.Batches(file, 8, 2, seed=0).rows(0, 0, 3)
