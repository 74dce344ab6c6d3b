"""One step against one written by hand: accumulation, ignored targets, frozen parts, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resonance_jax import model, train
from resonance_jax.model.parameters import create
from resonance_jax.train.optimizer import make_optimizer, schedules
from resonance_jax.train.state import new_state
from resonance_jax.train.step import gradients, train_step
from tests.train.small import CONFIG, ENCODINGS, batches


@pytest.fixture(scope="module")
def params():
    return create(CONFIG, jax.random.key(0))


def plain_loss(params, batch, freqs):
    logits = model.forward(CONFIG, params, batch["tokens"], freqs)[:, :-1]
    targets = batch.get("targets", batch["tokens"])[:, 1:]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.where(targets >= 0, nll, 0).sum() / (targets >= 0).sum()


def test_loss_and_gradients_are_the_mean_over_scored_tokens(params):
    batch = batches(0)
    batch["targets"] = np.where(np.arange(16) < 5, -100, batch["tokens"])
    want = jax.value_and_grad(plain_loss)(params, batch, ENCODINGS[1])
    got = gradients(CONFIG, params, batch, ENCODINGS[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_accumulation_weighs_tokens_not_micro_batches(params):
    """Micro-batches with very different numbers of scored tokens give the full batch's gradient."""
    batch = batches(1)
    scored = np.array([2, 15, 1, 7])[:, None]
    batch["targets"] = np.where(np.arange(16) <= scored, batch["tokens"], -100)
    loss, whole = gradients(CONFIG, params, batch, ENCODINGS[0])
    loss_in_pieces, pieces = gradients(CONFIG, params, batch, ENCODINGS[0], micro=1)
    assert abs(loss - loss_in_pieces) < 1e-6
    scale = optax.global_norm(whole)
    assert optax.global_norm(jax.tree.map(jnp.subtract, whole, pieces)) / scale < 1e-6
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(4)]
    naive = np.mean([gradients(CONFIG, params, row, ENCODINGS[0])[0] for row in rows])
    assert abs(naive - loss) > 1e-3  # the mistake this guards against is visible here


def test_remat_attention_recomputes_all_but_attention(params):
    """In the compiled gradient attention loops over its blocks forwards and backwards, not forwards again."""

    def compiled(remat):
        config = CONFIG.replace(remat=remat, kernel="block_pairs")
        grad = jax.jit(lambda params: gradients(config, params, batches(0, 1, 1024), ENCODINGS[0])[1])
        return grad.lower(params).compile()

    none, full, attention = map(compiled, ("none", "full", "attention"))
    loops = lambda program: program.as_text().count(" while(")
    assert loops(attention) == loops(none) == loops(full) - 1
    temporaries = lambda program: program.memory_analysis().temp_size_in_bytes
    assert temporaries(full) < temporaries(attention) < temporaries(none)
    exact = none(params)
    for program in (full, attention):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), program(params), exact)


def test_a_batch_that_does_not_divide_is_refused(params):
    with pytest.raises(ValueError, match="4 rows cannot be cut in micro-batches of 3"):
        gradients(CONFIG, params, batches(0), ENCODINGS[0], micro=3)


def test_frozen_parameters_get_neither_update_nor_decay(params):
    frozen = train.OptimizerConfig(lr=1e-2, weight_decay=0.5, schedule="constant", freeze=("layers/up",))
    tx = make_optimizer(frozen, 10)
    state, _ = train_step(CONFIG, tx, new_state(params, tx, jax.random.key(0)), batches(0), ENCODINGS[0])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, params)
    assert moved["layers"]["up"] == 0 and moved["layers"]["down"] > 0 and moved["embed"] > 0


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_warmup_reaches_the_peak_and_the_end(name):
    lr, _ = schedules(train.OptimizerConfig(lr=2.0, schedule=name, warmup=0.1), 100)
    values = np.asarray([lr(i) for i in range(100)])
    assert values[0] == 0 and values[10] == pytest.approx(2.0) and values.argmax() == 10
    last = {"linear": 2 / 90, "cosine": 0.2, "constant": 2.0}[name]
    assert values[-1] == pytest.approx(last, rel=0.01)


def test_linear_schedule_over_five_steps_with_one_of_warmup():
    lr, _ = schedules(train.OptimizerConfig(lr=1.0, schedule="linear", warmup=0.2), 5)
    assert np.allclose([lr(i) for i in range(5)], [0, 1, 0.75, 0.5, 0.25])


def test_onecycle_equals_pytorchs(goldens):
    """Learning rate and beta1 at 72 of 11,850 steps, as PyTorch's OneCycleLR sets them."""
    for entry in goldens.of_kind("schedule"):
        if "pct_start" not in entry or entry.get("anneal") != "cos":
            continue
        arrays = goldens.arrays(entry)
        config = train.OptimizerConfig(lr=entry["max_lr"], schedule="onecycle", warmup=entry["pct_start"])
        with jax.enable_x64(True):
            lr, beta1 = schedules(config, entry["total_steps"])
            steps = jnp.asarray(arrays["steps"], jnp.float64)
            np.testing.assert_allclose(jax.vmap(lr)(steps), arrays["lr"], rtol=1e-9)
            np.testing.assert_allclose(jax.vmap(beta1)(steps), arrays["beta1"], rtol=1e-9)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="unknown schedule 'sinus'"):
        train.OptimizerConfig(schedule="sinus")
    with pytest.raises(ValueError, match="warmup is a share of the steps"):
        train.OptimizerConfig(warmup=20)
