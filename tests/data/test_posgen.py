"""PosGen sequences against the reference's files, a plain Python oracle, and the task's own shortcut."""

import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_jax.data import posgen

NAMES = {"recursive": "recurrent", "cot": "cot", "semi_recursive": "semirecurrent"}


@pytest.fixture(params=posgen.TASKS)
def task(request):
    return request.param


def by_hand(task, seed, length, modulus, far, near):
    """The rules of section 5, token by token."""
    x = list(seed)
    while len(x) < length:
        l = len(x)
        first = {"recursive": l - far - near, "cot": 0, "semi_recursive": (l - far - near) // 2}[task]
        x.append((sum(x[first : first + far]) + sum(x[l - near : l])) % modulus)
    return x


# Figure 2 of the paper: 7 numbers, seed 2 0 3 1.
FIGURE_2 = {
    "recursive": [2, 0, 3, 1, 6, 3, 6, 2, 3, 0, 4, 2],
    "cot": [2, 0, 3, 1, 6, 5, 0, 6, 6, 0, 0, 1],
    "semi_recursive": [2, 0, 3, 1, 6, 5, 5, 2, 1, 4, 1, 0],
}


def test_figure_2(task):
    assert posgen.sequences(task, jnp.array([[2, 0, 3, 1]]), 12, modulus=7).tolist() == [FIGURE_2[task]]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_sequences_follow_the_rules(data):
    task = data.draw(st.sampled_from(posgen.TASKS))
    far, near, modulus = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(2, 19)),
    )
    number = st.integers(0, modulus - 1)
    seeds = data.draw(
        st.lists(st.lists(number, min_size=far + near, max_size=far + near), min_size=1, max_size=3)
    )
    length = far + near + data.draw(st.sampled_from([1, 10]))
    made = posgen.sequences(task, np.array(seeds), length, modulus, far, near)
    assert made.tolist() == [by_hand(task, seed, length, modulus, far, near) for seed in seeds]


def test_jit_and_vmap_give_the_same(task, strict_dtypes):
    seeds = jnp.asarray(posgen.seeds("paper", "val", sizes=(8, 8, 8)))
    plain = posgen.sequences(task, seeds, 40)
    assert plain.dtype == jnp.int32 and plain.shape == (8, 40)
    generate = lambda seeds: posgen.sequences(task, seeds, 40, hash="sum")
    np.testing.assert_array_equal(jax.jit(generate)(seeds), plain)
    np.testing.assert_array_equal(jax.vmap(generate)(seeds.reshape(2, 4, 4)).reshape(8, 40), plain)
    np.testing.assert_array_equal(generate(seeds[0]), plain[0])


# --- the published files, bit for bit


@pytest.fixture
def golden(goldens, task):
    return goldens.find("posgen_data.npz", f"{NAMES[task]}_m17_n3f1")


def test_release_sequences_equal_the_published_ones(task, golden):
    entry, arrays = golden
    seeds = posgen.seeds("release", "train", sizes=(12_000, 0, 0))
    made = np.asarray(posgen.sequences(task, seeds, 512))
    np.testing.assert_array_equal(made[:50], arrays["sequences"])
    np.testing.assert_array_equal(seeds[:50], arrays["seed_tuples_first"])
    assert len(np.unique(seeds, axis=0)) == entry["distinct_seed_tuples_in_file"] == 2380
    assert (
        hashlib.sha256(made.astype(np.int16).tobytes()).hexdigest() == entry["sha256_of_sequences_int16_all"]
    )


def test_release_splits_equal_the_published_ones(task, golden):
    entry, arrays = golden
    assert posgen.vocab_size() == entry["vocab_size"] == 22
    splits = {name: posgen.split("release", task, name) for name in posgen.SPLITS}
    for name, rows in splits.items():
        facts = entry["split_statistics"][name]
        assert rows.tokens.shape == rows.labels.shape == (facts["n"], 1 + facts["tokens_per_line"])
        for i in range(2):
            np.testing.assert_array_equal(rows.labels[i], arrays[f"{name}{i}_labels"])
            given = arrays[f"{name}{i}_input_ids"]  # the release gives val and test only [EOS] and the seeds
            np.testing.assert_array_equal(rows.tokens[i, : len(given)], given)
    train = {tuple(row[:65]) for row in np.asarray(splits["train"].tokens).tolist()}
    assert len(train) == entry["split_statistics"]["train"]["distinct"]
    for name in ("val", "test"):
        assert all(tuple(row[:65]) in train for row in np.asarray(splits[name].tokens).tolist())


def test_release_seeds_of_another_shape(goldens):
    entry, arrays = goldens.find("posgen_data.npz", "semirecurrent_m7_n2f2_sinpow")
    options = {"sizes": tuple(entry["sizes"]), "modulus": 7, "far": 2, "near": 2}
    seeds = posgen.seeds("release", "train", **options)
    np.testing.assert_array_equal(seeds[: len(arrays["seed_tuples_first"])], arrays["seed_tuples_first"])
    assert len(seeds) == entry["split_statistics"]["train"]["n"]
    assert len(np.unique(seeds, axis=0)) == entry["distinct_seed_tuples_in_file"]


# --- the other protocols


@pytest.mark.parametrize("protocol", ["paper", "corrected"])
def test_splits_are_disjoint_and_random(protocol):
    parts = {split: posgen.seeds(protocol, split) for split in posgen.SPLITS}
    assert [len(part) for part in parts.values()] == [10_000, 1_000, 1_000]
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows, axis=0)) == 12_000 and rows.min() == 0 and rows.max() == 16
    counts = np.stack([np.bincount(column, minlength=17) for column in rows.T])
    assert np.abs(counts - 12_000 / 17).max() < 5 * np.sqrt(12_000 / 17)
    assert (posgen.seeds(protocol, "test", seed=1) != parts["test"]).any()
    assert parts["train"][:2].tolist() == FIRST_PAPER_SEEDS


FIRST_PAPER_SEEDS = [[3, 13, 8, 2], [14, 16, 15, 11]]


def test_labels_are_the_tokens_without_eos_and_seeds():
    rows = posgen.split("paper", "cot", "val", length=20, sizes=(5, 6, 7), modulus=11, far=2, near=2)
    assert rows.tokens.shape == (6, 21) and (rows.tokens[:, 0] == 15).all()
    assert (rows.labels[:, :5] == -100).all() and (rows.labels[:, 5:] == rows.tokens[:, 5:]).all()
    assert posgen.split("paper", "cot", "train", sizes=(5, 6, 7)).tokens.shape == (5, 65)


# --- the shortcut, and the task without it


def test_the_shortcut_is_exact_where_it_is_said_to_be(task):
    tokens = posgen.sequences(task, posgen.seeds("paper", "test"), 256)
    told = posgen.shortcut(task, tokens)
    assert (told[:, :5] == -1).all()
    right = np.asarray(told == tokens).mean(axis=0)
    exact = (
        np.arange(256) > 4 if task != "semi_recursive" else (np.arange(256) > 4) & (np.arange(256) % 2 == 1)
    )
    assert (right[exact] == 1).all()
    by_chance = right[5:][~exact[5:]]
    assert not by_chance.size or abs(by_chance.mean() - 1 / 17) < 0.01


CEILINGS = {"recursive": (98.43, 100.0), "cot": (98.43, 100.0), "semi_recursive": (52.94, 52.94)}


def test_the_ceiling_is_what_the_shortcut_reaches(task):
    ceiling = posgen.ceiling(task)
    assert tuple(round(100 * accuracy, 2) for accuracy in ceiling) == CEILINGS[task]
    tokens = posgen.sequences(task, posgen.seeds("paper", "test"), 256)
    told = posgen.shortcut(task, tokens).at[:, 4].set(0)  # any guess
    right = np.asarray(told == tokens)
    assert abs(right[:, 4:64].mean() - ceiling.id) < 0.002 and abs(right[:, 64:].mean() - ceiling.ood) < 0.002
    assert posgen.ceiling(task, hash="permuted_sum") == pytest.approx((1 / 17, 1 / 17))


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(posgen.TASKS), st.integers(1, 3), st.integers(1, 3), st.integers(2, 19))
def test_the_shortcut_in_every_shape(task, far, near, modulus):
    seeds = np.random.default_rng(0).integers(0, modulus, (4, far + near))
    tokens = posgen.sequences(task, seeds, 30, modulus, far, near)
    l = np.arange(far + near + 1, 30, 2 if task == "semi_recursive" else 1)
    np.testing.assert_array_equal(posgen.shortcut(task, tokens, modulus, far, near)[:, l], tokens[:, l])


def best_two_token_rule(tokens, pairs, modulus=17):
    """The accuracy of the best table (u, v) -> next over pairs of arrays u, v [B, T]: no rule is better."""
    best = 0.0
    for u, v in pairs:
        codes = ((u * modulus + v) * modulus + tokens).ravel()
        counts = np.bincount(codes, minlength=modulus**3).reshape(-1, modulus)
        best = max(best, counts.max(axis=1).sum() / counts.sum())
    return best


@pytest.mark.parametrize("hash", posgen.HASHES)
def test_permuted_sum_has_no_two_token_rule_at_all(task, hash):
    """Every rule, linear or not, that tells x_l from two of: the 14 tokens before it, and its far token."""
    seeds = posgen.seeds("paper", "train", sizes=(4_000, 0, 0))
    x = np.asarray(posgen.sequences(task, seeds, 64, hash=hash)).astype(np.int64)
    l = np.arange(14, 64)
    far = {"recursive": l - 4, "cot": 0 * l, "semi_recursive": (l - 4) // 2}[task]
    earlier = [x[:, l - lag] for lag in range(1, 15)] + [x[:, far]]
    if task == "semi_recursive":  # where the sum has its shortcut
        earlier, l = [tokens[:, 1::2] for tokens in earlier], l[1::2]
    best = best_two_token_rule(x[:, l], itertools.combinations(earlier, 2))
    assert best == 1.0 if hash == "sum" else best < 0.1


def test_permuted_sum_is_what_it_says(task):
    permutations = posgen._permutations(17, 4)
    assert (np.sort(permutations, axis=1) == np.arange(17)).all()
    slopes = np.diff(permutations, axis=1) % 17
    assert all(len(set(row)) > 1 for row in slopes.tolist()), "an affine permutation"
    x = np.asarray(posgen.sequences(task, posgen.seeds("paper", "val"), 40, hash="permuted_sum"))
    for l in (4, 5, 20, 39):
        far = {"recursive": l - 4, "cot": 0, "semi_recursive": (l - 4) // 2}[task]
        arguments = (x[:, far], x[:, l - 3], x[:, l - 2], x[:, l - 1])
        told = sum(permutation[a] for permutation, a in zip(permutations, arguments, strict=True)) % 17
        np.testing.assert_array_equal(told, x[:, l])


def test_permuted_sum_never_changes():
    assert posgen.sequences("cot", jnp.arange(4)[None], 12, hash="permuted_sum").tolist() == FIRST_PERMUTED


FIRST_PERMUTED = [[0, 1, 2, 3, 16, 14, 10, 3, 9, 13, 12, 5]]


def test_bad_input_is_one_sentence():
    seeds = np.zeros((2, 4), np.int32)
    for message, call in {
        "more than far \\+ near = 4, not 4": lambda: posgen.sequences("cot", seeds, 4),
        "at least 2": lambda: posgen.sequences("cot", seeds, 9, modulus=1),
        "4 for permuted_sum": lambda: posgen.sequences("cot", seeds, 9, modulus=3, hash="permuted_sum"),
        r"\[B, 4\], not \[2, 3\]": lambda: posgen.sequences("cot", seeds[:, :3], 9),
        r"0 \.\.\. 16, not 0 \.\.\. 17": lambda: posgen.sequences("cot", seeds + [0, 0, 0, 17], 9),
        "the tasks recursive, cot, semi_recursive .* not 'recurrent'": lambda: posgen.sequences(
            "recurrent", seeds, 9
        ),
        "the hashes sum, permuted_sum": lambda: posgen.sequences("cot", seeds, 9, hash="product"),
        "one far and one near": lambda: posgen.sequences("cot", seeds, 9, far=0, near=4),
        "the protocols release, paper, corrected": lambda: posgen.seeds("published", "train"),
        "the splits train, val, test": lambda: posgen.seeds("paper", "heldout"),
        "need a modulus >= 4": lambda: posgen.seeds("release", "train", modulus=3),
        "16 different PosGen seeds .* = 12000": lambda: posgen.seeds("paper", "train", modulus=2),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
