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
from resonance_jax.train.step import gradients, summed_loss, train_step, with_labels
from tests.train.small import CONFIG, ENCODINGS, batches
from tests.unchecked import unchecked


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


PACKED = np.repeat([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]], 4, axis=0)


def test_packed_documents_do_not_predict_each_other(params):
    """Three documents a row: their own losses, none for the first token of the next."""
    batch = batches(2)
    total, count = summed_loss(CONFIG, params, batch | {"segment_ids": PACKED}, ENCODINGS[1])
    assert count == 4 * (16 - 3)
    parts = np.split(batch["tokens"], [5, 11], axis=1)
    alone = [summed_loss(CONFIG, params, {"tokens": part}, ENCODINGS[1])[0] for part in parts]
    np.testing.assert_allclose(total, sum(alone), rtol=1e-5)
    stated = batch | {"segment_ids": PACKED, "targets": batch["tokens"]}  # what is stated is taken as it is
    assert summed_loss(CONFIG, params, stated, ENCODINGS[1])[1] == 4 * 15


def test_the_last_token_predicts_where_a_target_follows_it(params):
    longer = batches(3, length=17)["tokens"]
    batch = {"tokens": longer[:, :-1], "targets": longer}
    total, count = summed_loss(CONFIG, params, batch, ENCODINGS[0])
    assert count == 4 * 16
    np.testing.assert_allclose(
        total, summed_loss(CONFIG, params, {"tokens": longer}, ENCODINGS[0])[0], rtol=1e-5
    )
    on_host = with_labels(batch)
    assert isinstance(on_host["labels"], np.ndarray)
    np.testing.assert_array_equal(on_host["labels"], longer[:, 1:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": np.zeros((4, 16))}, "a batch holds tokens, .* got target, tokens"),
        ({"targets": np.zeros((4, 18))}, r"targets \[4, 18\] do not belong to tokens \[4, 16\]"),
        ({"segment_ids": np.zeros((4, 17))}, r"segment_ids \[4, 17\] do not belong"),
    ],
)
def test_arrays_that_do_not_belong_together(params, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradients(CONFIG, params, batches(0) | changes, ENCODINGS[0], micro=2)


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


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "onecycle"])
def test_every_schedule_is_finite_from_the_first_step_to_the_last(name):
    """A peak at the very first step (onecycle with warmup * steps = 1) is a quotient of zeros."""
    for steps in (1, 2, 5, 10, 40):
        for warmup in (0.0, 0.01, 1 / steps if steps > 1 else 0.0, 0.1, 0.5, 0.99):
            rates = schedules(train.OptimizerConfig(lr=1.0, schedule=name, warmup=warmup), steps)
            values = np.asarray([[rate(jnp.asarray(i)) for i in range(steps)] for rate in rates])
            assert np.isfinite(values).all() and (values >= 0).all() and (values[0] <= 1).all()
    lr, beta1 = schedules(train.OptimizerConfig(lr=1.0, schedule="onecycle", warmup=0.1), 10)
    assert (lr(0), beta1(0)) == (1.0, pytest.approx(0.85))


@pytest.mark.parametrize("path", ["layer/up", "layers/u", "mlp"])
def test_a_mistyped_path_to_freeze_is_refused(params, path):
    tx = make_optimizer(train.OptimizerConfig(freeze=("embed", path)), 10)
    known = "there are embed, final_norm, layers/attn_norm, "
    with pytest.raises(ValueError, match=f"freeze names '{path}', which is no parameter; {known}"):
        tx.init(params)


OPTIMIZERS = {
    "unknown schedule 'sinus'; expected one of linear": {"schedule": "sinus"},
    "warmup is a share of the steps": {"warmup": 20},
    "lr must be a finite number, at least 0, got -1": {"lr": -1.0},
    "lr must be a finite number, at least 0, got nan": {"lr": float("nan")},
    "weight_decay must be": {"weight_decay": float("inf")},
    "eps must be a positive": {"eps": 0.0},
    r"beta2 in \(0, 1\), got 0.9 and 1": {"beta2": 1},
    "clip must be a positive norm": {"clip": 0.0},
    r"write \('embed',\)": {"freeze": "embed"},
}
TRAININGS = {
    "steps must be a whole number of at least 1, got 0": {"steps": 0},
    "steps must be a whole number of at least 1, got 2.5": {"steps": 2.5},
    "micro must be a whole number of at least 0, got -1": {"micro": -1},
    "steps_per_call must be a whole number of at least 1": {"steps_per_call": 0},
    "unknown mapped 'pmap'": {"mapped": "pmap"},
    "save_seconds must be at least 0, got nan": {"save_seconds": float("nan")},
    "save_seconds must be at least 0, got -1": {"save_seconds": -1},
}


@pytest.mark.parametrize("sentence", [*OPTIMIZERS, *TRAININGS])
@unchecked()
def test_bad_settings_are_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        if sentence in OPTIMIZERS:
            train.OptimizerConfig(**OPTIMIZERS[sentence])
        else:
            train.TrainConfig(**{"steps": 1} | TRAININGS[sentence])
