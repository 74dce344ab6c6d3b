"""PosGen's metric against the published code's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.evaluate import posgen_accuracy
from resonance_jax.model import forward
from tests.model import test_t5
from tests.model.test_t5 import CONFIG, TYPES

weights, tokens = test_t5.weights, test_t5.tokens  # fixtures


def test_accuracies_and_loss_equal_the_published_metric(goldens):
    """Three batches, the last a row smaller; every figure that the published code logs of them."""
    entry, golden = goldens.find("posgen_data.npz", "metrics_64_256")
    order = entry["initial_token_count"]
    ids, told = (np.concatenate([golden[f"{name}{i}"] for i in range(3)]) for name in ("ids", "argmax"))
    hits = (told[:, order:-1] == ids[:, order + 1 :]).sum(axis=0)
    got = posgen_accuracy.accuracy(hits, len(ids), order, entry["train_max_length"])
    for name in ("val", "test"):
        expected = golden[f"{name}_acc_id"], golden[f"{name}_acc_ood"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # theirs is a float32
    # Their digit i is the i-th token, counted from 1; they log every 32nd.
    at = golden["val_acc_digit_index"] - 1 - order
    np.testing.assert_allclose((hits / len(ids))[at], golden["val_acc_digit"], rtol=0, atol=1e-6)
    rows = np.concatenate([np.full(len(golden[f"ids{i}"]), golden[f"loss{i}"]) for i in range(3)])
    assert posgen_accuracy.validation_loss(rows, batch=3) == pytest.approx(
        float(golden["val_loss"]), abs=1e-6
    )
    assert abs(rows.mean() - golden["val_loss"]) > 1e-5  # batches, not rows, weigh the same


def test_eight_runs_at_once_score_what_the_reference_scores_each(goldens, weights, tokens):
    """One set of weights under the eight evaluation tables of the published position types."""
    params = jax.tree.map(lambda x: jnp.stack([x] * len(TYPES)), weights)
    freqs = [evaluated for _, evaluated in TYPES.values()]
    hits, losses = posgen_accuracy.score_runs(CONFIG, params, tokens, freqs, order=4, block=2)
    for e, id in enumerate(TYPES):
        _, golden = goldens.find("t5_posgen.npz", id)
        got = posgen_accuracy.accuracy(hits[e], len(tokens), 4, 64)
        np.testing.assert_allclose(got, (golden["val_acc_id"], golden["val_acc_ood"]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(losses[e].mean(), golden["val_loss"], rtol=0, atol=5e-5)
        np.testing.assert_array_equal(hits[e], (golden["eval_argmax"][:, 4:-1] == tokens[:, 5:]).sum(axis=0))


def test_runs_on_several_devices_with_any_block_score_as_on_one(weights, tokens):
    mesh = jax.make_mesh((2,), ("runs",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs"))
    params = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), weights)
    freqs, short = [TYPES["rotary_hf"][0], TYPES["rotary_scaled_yarn"][1]], tokens[:, :41]
    apart = posgen_accuracy.score_runs(CONFIG, jax.device_put(params, where), short, freqs, order=4, block=1)
    together = posgen_accuracy.score_runs(CONFIG, params, short, freqs, order=4)
    np.testing.assert_array_equal(apart[0], together[0])
    np.testing.assert_allclose(apart[1], together[1], rtol=1e-5)
    for e in range(2):
        logits = forward(CONFIG, jax.tree.map(lambda x, e=e: x[e], params), short, freqs[e])
        np.testing.assert_array_equal(
            together[0][e], (np.asarray(logits).argmax(-1)[:, 4:-1] == short[:, 5:]).sum(axis=0)
        )
    with pytest.raises(ValueError, match=r"one rotary size, got \[32, 64\]"):
        small = rope.frequencies(rope.RopeSpec(head_dim=32))
        posgen_accuracy.score_runs(CONFIG, params, short, [freqs[0], small], order=4)


def test_the_release_s_checkpoint_is_the_first_at_the_maximum():
    assert posgen_accuracy.best_epoch([0.1, 0.9, 0.9, 0.8]) == 1
    assert posgen_accuracy.best_epoch([0.5]) == 0


def test_a_curve_keeps_both_rules_and_every_table(weights, tokens):
    tables = [[TYPES["rotary_hf"][0], TYPES["rotary_scaled_yarn"][1]], [TYPES["rotary_resonance"][0]]]
    params = jax.tree.map(lambda x: jnp.stack([x, 1.2 * x]), weights)
    short = tokens[:, :41]
    evaluate = posgen_accuracy.evaluator(CONFIG, {"val": short, "test": short[:2]}, tables, order=4)
    evaluations = [evaluate(params), evaluate(jax.tree.map(lambda x: 0.9 * x, params))]
    assert [len(own) for own in evaluations[0]["val"]["hits"]] == [2, 1]
    direct, losses = posgen_accuracy.score_runs(CONFIG, params, short[:2], [tables[0][1]] * 2, order=4)
    curve = posgen_accuracy.curve(evaluations, 0, 1, 4, 20)
    assert curve["test_id"][0] == pytest.approx(direct[0][:16].mean() / 2)
    assert curve["test_ood"][0] == pytest.approx(direct[0][16:].mean() / 2)
    assert evaluations[0]["test"]["loss"][0][1] == pytest.approx(losses[0].mean(), rel=1e-6)
    assert len(curve["val_loss"]) == 2 and curve["best"] == posgen_accuracy.best_epoch(curve["val_id"])
    assert curve["by_position"]["last"] == pytest.approx(np.array(evaluations[1]["test"]["hits"][0][1]) / 2)
