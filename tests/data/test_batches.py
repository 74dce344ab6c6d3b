"""Batches depend on (seed, step) alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_jax import data
from resonance_jax.data.corpora import Corpus


def counting(tmp_path, total):
    """A token file of 0, 1, 2, ..., so that a chunk tells where it came from."""
    documents = [data.Document("0", "", np.arange(total, dtype=np.int32))]
    return data.token_file(Corpus("counting", lambda: iter(documents), {}), None, tmp_path, rule="none")


@st.composite
def settings_of_batches(draw):
    length = draw(st.integers(1, 9))
    mode = draw(st.sampled_from(["split", "truncate"]))
    source_chunk = draw(st.integers(length, 12))
    total = draw(st.integers(source_chunk, 300))
    options = {"length": length, "batch_size": draw(st.integers(1, 12)), "seed": draw(st.integers(0, 2**32))}
    return total, {**options, "mode": mode, "source_chunk": source_chunk}


class InMemory(data.TokenFile):
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


def test_the_fingerprint_is_of_every_batch(tmp_path):
    """Another token far behind the first batch, another seed, length or number of rows: another one."""
    file = counting(tmp_path / "a", 100)
    first = data.Batches(file, 8, 2, seed=0).fingerprint
    assert data.Batches(counting(tmp_path / "b", 100), 8, 2, seed=0).fingerprint == first
    others = [
        data.Batches(counting(tmp_path / "c", 101), 8, 2, seed=0),
        data.Batches(file, 8, 2, seed=1),
        data.Batches(file, 4, 2, seed=0),
        data.Batches(file, 8, 3, seed=0),
        data.Batches(file, 8, 2, seed=0, mode="truncate", source_chunk=10),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == 6


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
