"""How windows are put together in batches: each once, and little beside them."""

import numpy as np
import pytest

from resonance_jax.evaluate.window_batches import Cuts, batches, padded_width

ONE, MESH, PMAP = Cuts(), Cuts(either=4, movable=True), Cuts(either=4)
FSDP = Cuts(rows=2, either=4, time=2, movable=True)


def computed_over_scored(sizes, cuts, length):
    """And every window is there once, in a batch that the devices can cut, of a row that holds it."""
    found = batches(sizes, length, cuts, 8192)
    assert sorted(i for batch in found for i in batch.windows) == list(range(len(sizes)))
    for batch in found:
        assert 0 < len(batch.windows) <= batch.rows and batch.rows % (cuts.shards // batch.time) == 0
        assert all(sizes[i] <= batch.width for i in batch.windows)
        ways = cuts.time * batch.time
        assert ways == 1 or batch.width % (2 * ways) == 0
        assert batch.rows == cuts.shards // batch.time or batch.computed <= 8192 * cuts.shards
        assert cuts.either % batch.time == 0 and (cuts.movable or batch.time == 1)
    return sum(batch.computed for batch in found) / sum(sizes)


@pytest.mark.parametrize("length", [250, 2048, 3000, 8192, 131_072])
@pytest.mark.parametrize("cuts", [ONE, MESH], ids=["one", "mesh"])
def test_of_equal_lengths_a_twentieth_is_padding_at_most(length, cuts):
    for count in (*range(1, 14), 50, 100):
        assert computed_over_scored([length] * count, cuts, length) <= 1.05
    assert [b.rows for b in batches([length] * 4, length, MESH, 8192)] == [4]


@pytest.mark.parametrize("cuts", [ONE, MESH], ids=["one", "mesh"])
def test_of_mixed_lengths_three_tenths(cuts):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        length = int(rng.choice([1024, 4096, 32_768]))
        sizes = rng.integers(65, length + 1, rng.integers(1, 60)).tolist()
        assert computed_over_scored(sizes, cuts, length) <= 1.3
    assert computed_over_scored([2049, 1025, 513, 257], cuts, 4096) <= 1.3  # just above a width each


def test_rows_that_cannot_be_cut_in_time_are_filled_up_to_the_shards():
    assert [(b.rows, b.width) for b in batches([1000] * 5, 1000, PMAP, 2000)] == [(4, 1000), (4, 1000)]
    found = batches([1000], 1000, FSDP, 8192)
    assert [(b.rows, b.width, b.time) for b in found] == [(2, 1008, 4)]
    assert computed_over_scored([4096] * 11, FSDP, 4096) <= 12 / 11


def test_few_widths():
    widths = {padded_width(size, 4096) for size in range(1, 4097)}
    assert max(widths) == 4096 and len(widths) == 4 + 4 * 6 and padded_width(250, 250) == 250
    assert all(padded_width(size, 4096) < 1.25 * size for size in range(65, 4097))
