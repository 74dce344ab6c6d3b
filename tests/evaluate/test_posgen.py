"""PosGen's metric against the published code's numbers, its tables by protocol, and Table 1."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.evaluate import posgen, posgen_tables
from resonance_jax.model import forward
from resonance_jax.report import posgen as report
from tests.model import test_t5
from tests.model.test_t5 import CONFIG, TYPES

GOLDENS = Path(__file__).parents[1] / "goldens"
weights, tokens = test_t5.weights, test_t5.tokens  # fixtures

# The metric.


def test_accuracies_and_loss_equal_the_published_metric(goldens):
    """Three batches, the last a row smaller; every figure that the published code logs of them."""
    entry, golden = goldens.find("posgen_data.npz", "metrics_64_256")
    order = entry["initial_token_count"]
    ids, told = (np.concatenate([golden[f"{name}{i}"] for i in range(3)]) for name in ("ids", "argmax"))
    hits = (told[:, order:-1] == ids[:, order + 1 :]).sum(axis=0)
    got = posgen.accuracy(hits, len(ids), order, entry["train_max_length"])
    for name in ("val", "test"):
        expected = golden[f"{name}_acc_id"], golden[f"{name}_acc_ood"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # theirs is a float32
    # Their digit i is the i-th token, counted from 1; they log every 32nd.
    at = golden["val_acc_digit_index"] - 1 - order
    np.testing.assert_allclose((hits / len(ids))[at], golden["val_acc_digit"], rtol=0, atol=1e-6)
    rows = np.concatenate([np.full(len(golden[f"ids{i}"]), golden[f"loss{i}"]) for i in range(3)])
    assert posgen.validation_loss(rows, batch=3) == pytest.approx(float(golden["val_loss"]), abs=1e-6)
    assert abs(rows.mean() - golden["val_loss"]) > 1e-5  # batches, not rows, weigh the same


def test_eight_runs_at_once_score_what_the_reference_scores_each(goldens, weights, tokens):
    """One set of weights under the eight evaluation tables of the published position types."""
    params = jax.tree.map(lambda x: jnp.stack([x] * len(TYPES)), weights)
    freqs = [evaluated for _, evaluated in TYPES.values()]
    hits, losses = posgen.score_runs(CONFIG, params, tokens, freqs, order=4, block=2)
    for e, id in enumerate(TYPES):
        _, golden = goldens.find("t5_posgen.npz", id)
        got = posgen.accuracy(hits[e], len(tokens), 4, 64)
        np.testing.assert_allclose(got, (golden["val_acc_id"], golden["val_acc_ood"]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(losses[e].mean(), golden["val_loss"], rtol=0, atol=5e-5)
        np.testing.assert_array_equal(hits[e], (golden["eval_argmax"][:, 4:-1] == tokens[:, 5:]).sum(axis=0))


def test_runs_on_several_devices_with_any_block_score_as_on_one(weights, tokens):
    mesh = jax.make_mesh((2,), ("runs",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs"))
    params = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), weights)
    freqs, short = [TYPES["rotary_hf"][0], TYPES["rotary_scaled_yarn"][1]], tokens[:, :41]
    apart = posgen.score_runs(CONFIG, jax.device_put(params, where), short, freqs, order=4, block=1)
    together = posgen.score_runs(CONFIG, params, short, freqs, order=4)
    np.testing.assert_array_equal(apart[0], together[0])
    np.testing.assert_allclose(apart[1], together[1], rtol=1e-5)
    for e in range(2):
        logits = forward(CONFIG, jax.tree.map(lambda x, e=e: x[e], params), short, freqs[e])
        np.testing.assert_array_equal(
            together[0][e], (np.asarray(logits).argmax(-1)[:, 4:-1] == short[:, 5:]).sum(axis=0)
        )
    with pytest.raises(ValueError, match=r"one rotary size, got \[32, 64\]"):
        small = rope.frequencies(rope.RopeSpec(head_dim=32))
        posgen.score_runs(CONFIG, params, short, [freqs[0], small], order=4)


def test_the_release_s_checkpoint_is_the_first_at_the_maximum():
    assert posgen.best_epoch([0.1, 0.9, 0.9, 0.8]) == 1
    assert posgen.best_epoch([0.5]) == 0


def test_a_curve_keeps_both_rules_and_every_table(weights, tokens):
    tables = [[TYPES["rotary_hf"][0], TYPES["rotary_scaled_yarn"][1]], [TYPES["rotary_resonance"][0]]]
    params = jax.tree.map(lambda x: jnp.stack([x, 1.2 * x]), weights)
    short = tokens[:, :41]
    evaluate = posgen.evaluator(CONFIG, {"val": short, "test": short[:2]}, tables, order=4)
    evaluations = [evaluate(params), evaluate(jax.tree.map(lambda x: 0.9 * x, params))]
    assert [len(own) for own in evaluations[0]["val"]["hits"]] == [2, 1]
    direct, losses = posgen.score_runs(CONFIG, params, short[:2], [tables[0][1]] * 2, order=4)
    curve = posgen.curve(evaluations, 0, 1, 4, 20)
    assert curve["test_id"][0] == pytest.approx(direct[0][:16].mean() / 2)
    assert curve["test_ood"][0] == pytest.approx(direct[0][16:].mean() / 2)
    assert evaluations[0]["test"]["loss"][0][1] == pytest.approx(losses[0].mean(), rel=1e-6)
    assert len(curve["val_loss"]) == 2 and curve["best"] == posgen.best_epoch(curve["val_id"])
    assert curve["by_position"]["last"] == pytest.approx(np.array(evaluations[1]["test"]["hits"][0][1]) / 2)


# The tables.

SWAPPED = {  # published position type -> our name for it
    "rotary_hf": "rope",
    "rotary_scaled_linear": "linear",
    "rotary_scaled_ntk": "ntk",
    "rotary_scaled_yarn": "yarn",
    "rotary_resonance": "resonance-rope",
    "rotary_resonance_ntk": "resonance-ntk",
    "rotary_resonance_yarn": "Resonance_YaRN",
}


@pytest.mark.parametrize("id", SWAPPED)
def test_the_release_s_tables(id):
    """Those that reproduce the reference's logits (tests/model/test_t5.py), trained and evaluated."""
    trained, evaluated = TYPES[id]
    encoding = posgen_tables.encoding(SWAPPED[id], "release")
    assert rope.same(encoding.train, trained) and rope.same(encoding.evaluation, evaluated)


def test_protocols_differ_in_tables_as_they_say():
    tables = {p: posgen_tables.encoding("resonance-yarn", p) for p in posgen_tables.PROTOCOLS}
    stated = {p: (e.spec.train_length, e.spec.scale, e.spec.beta_fast) for p, e in tables.items()}
    assert stated == {"release": (257, 257 / 65, 2), "paper": (64, 4, 32), "corrected": (64, 4, 2)}
    plain = rope.frequencies(rope.RopeSpec(head_dim=64, resonance=True))
    assert rope.same(tables["release"].train, plain) and rope.same(tables["corrected"].train, plain)
    assert rope.same(tables["paper"].train, tables["paper"].evaluation)
    two = posgen_tables.encoding("yarn", "paper", beta_fast=2.0)
    assert two.spec.beta_fast == 2 and not rope.same(two.train, tables["paper"].train)


def test_one_training_serves_every_encoding_with_its_table():
    names = ["rope", "resonance-rope", "yarn", "resonance-yarn", "llama3", "dynamic-ntk"]
    groups = lambda protocol: posgen_tables.training_groups(
        [posgen_tables.encoding(name, protocol) for name in names]
    )
    assert groups("corrected") == [[0, 2, 4, 5], [1, 3]]
    # A dynamic method is plain RoPE at the training length.
    assert groups("paper") == [[0, 5], [1], [2], [3], [4]]


@pytest.mark.parametrize("protocol", posgen_tables.PROTOCOLS)
@pytest.mark.parametrize("prefix", ["", "resonance-"])
def test_every_method_has_its_tables(protocol, prefix):
    for method in rope.METHODS:
        factors = (1.5,) * 32
        encoding = posgen_tables.encoding(prefix + method, protocol, long_factor=factors)
        assert encoding.spec.method == method and encoding.spec.resonance == bool(prefix)
        assert encoding.evaluation.inv_freq64.shape == (32,)
        if method == "longrope" and protocol != "release":  # whose L is the longer length: the short list
            fastest = 1 / 1.5 if not prefix else 2 * np.pi / round(2 * np.pi * 1.5)
            assert encoding.evaluation.inv_freq64[0] == pytest.approx(fastest)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("yarm", "paper"), "unknown encoding 'yarm'; expected one of rope, linear, ntk, dynamic-ntk"),
        (("yarn", "published"), "unknown PosGen protocol 'published'; expected one of release, paper"),
        (("longrope", "paper"), "longrope needs long_factor: 32 positive numbers"),
    ],
)
def test_bad_names_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        posgen_tables.encoding(*arguments)


# The paper's table and ours.


def test_the_paper_s_table_is_the_paper_s():
    with open(GOLDENS / "paper_table1.csv", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {
        title: {task: float(rows[title][task]) for task in tasks} for title, tasks in report.PAPER.items()
    }
    for title, tasks in report.PAPER.items():
        assert tasks == {task: float(rows[title][task]) for task in tasks}


def curves(*oods: float) -> list[dict]:
    """One run a value, whose best evaluation is the first of two and has that OOD accuracy (%)."""
    return [{"best": 0, "test_ood": [ood / 100, 0.5], "test_id": [0.9, 0.8]} for ood in oods]


def test_rows_are_means_and_deviations_beside_the_paper():
    results = {
        "cot": {
            "curves": {
                "YaRN": curves(90, 94, 98),
                "Resonance YaRN": curves(91, 96, 99),
                "NTK": curves(50, 50, 50),
            },
            "ceiling": {"id": 0.98, "ood": 1.0},
        }
    }
    rows = report.rows(results)
    best, last = rows[0], rows[3]
    assert (best["rule"], best["encoding"], best["seeds"]) == ("best", "YaRN", 3)
    assert best["ood_mean"] == pytest.approx(94) and best["ood_std"] == pytest.approx(4)
    assert best["difference"] == pytest.approx(94 - 98.71) and best["ceiling_ood"] == 100
    assert (
        last["rule"] == "last"
        and last["ood_mean"] == pytest.approx(50)
        and last["id_mean"] == pytest.approx(80)
    )
    assert rows[2]["paper_ood"] is None and rows[2]["difference"] is None
    text = report.report(rows, report.differences(results, [("Resonance YaRN", "YaRN")]), "# heading")
    assert "94.0 ± 4.0 (paper 98.71, -4.7)" in text and "| ceiling of the shortcut | 100.00 |" in text


def test_differences_are_paired_by_seed_and_say_what_the_spread_allows():
    def gap(a, b):
        results = {"cot": {"curves": {"A": curves(*a), "B": curves(*b)}, "ceiling": None}}
        return report.differences(results, [("A", "B")])[0]

    steady = gap([10, 50, 91], [9, 49, 89])  # 1, 1, 2 points: small beside the seeds, but always there
    assert steady["points"] == pytest.approx(4 / 3) and steady["verdict"] == "inside the spread"
    assert steady["high"] - steady["points"] == pytest.approx(
        4.30265 * np.std([1, 1, 2], ddof=1) / 3**0.5, rel=1e-4
    )
    assert gap([10, 50, 91], [9, 49, 90.01])["verdict"] == "better"
    assert gap([9, 49, 90], [10, 50, 91.01])["verdict"] == "worse"
    assert not report.differences({"cot": {"curves": {"A": curves(1)}, "ceiling": None}}, [("A", "B")])
