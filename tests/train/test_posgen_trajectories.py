"""PosGen's training against the reference, and many runs of it at once against each alone."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import train
from resonance_jax.data import posgen
from resonance_jax.parallel import memory
from resonance_jax.train import many_program
from resonance_jax.train.optimizer import make_optimizer
from resonance_jax.train.state import new_state
from resonance_jax.train.step import summed_loss, train_step
from tests.model import test_t5
from tests.model.test_t5 import CONFIG, NAMES, TYPES
from tests.unchecked import unchecked

LOSS, NORM = 5e-5, 1e-3  # absolute, relative
MLP = ("layers/mlp_norm", "layers/up", "layers/down")
weights, tokens = test_t5.weights, test_t5.tokens  # fixtures


def labelled(tokens) -> dict:
    """EOS and the four seeds are given, the rest is predicted."""
    return {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(tokens).at[:, :5].set(-100)}


@functools.cache
def compiled(optimizer: train.OptimizerConfig, steps: int):
    """All steps of a training on one batch, jitted once for every table."""
    tx = make_optimizer(optimizer, steps)

    @jax.jit
    def run(params, batch, freqs):
        step = lambda state, _: train_step(CONFIG, tx, state, batch, freqs)
        return jax.lax.scan(step, new_state(params, tx, jax.random.key(0)), length=steps)

    return run


@jax.jit
def loss(params, batch, freqs):
    total, count = summed_loss(CONFIG, params, batch, freqs)
    return total / count


@pytest.mark.parametrize("mlp", ["frozen", "trained"])
@pytest.mark.parametrize("id", ["rotary_hf", "rotary_resonance_yarn"])
def test_the_reference_s_trajectory(goldens, weights, tokens, id, mlp):
    entry, golden = goldens.find("train_posgen.npz", f"traj.{id}.ffn_{mlp}")
    optimizer = train.OptimizerConfig(
        lr=entry["lr"],
        beta2=0.999,
        weight_decay=entry["weight_decay"],
        schedule="onecycle",
        warmup=entry["pct_start"],
        freeze=MLP if mlp == "frozen" else (),
    )
    trained_with, evaluated_with = TYPES[id]
    run = compiled(optimizer, entry["total_steps"])
    state, metrics = run(weights, labelled(tokens[:, :65]), trained_with)
    np.testing.assert_allclose(metrics["loss"], golden["loss"], rtol=0, atol=LOSS)
    extended = loss(state.params, labelled(tokens), evaluated_with)
    np.testing.assert_allclose(extended, golden["eval_loss_extended"], rtol=0, atol=LOSS)

    names = sorted(goldens.find("t5_posgen.npz", "weights")[1])
    norms = dict(zip(names, golden["final_param_norms"], strict=True))
    for path, name in NAMES.items():
        if "{}" not in name:
            np.testing.assert_allclose(np.linalg.norm(state.params[path]), norms[name], rtol=NORM)
            continue
        for layer, leaf in enumerate(state.params["layers"][path.removeprefix("layers/")]):
            np.testing.assert_allclose(np.linalg.norm(leaf), norms[name.format(layer)], rtol=NORM)


# Many runs at once.

SEEDS = [0, 0, 3, 3]
TABLES = [TYPES["rotary_hf"][0], TYPES["rotary_resonance_ntk"][1]] * 2
TRAINING = train.TrainConfig(50, train.OptimizerConfig(lr=1e-2, beta2=0.999, schedule="onecycle", warmup=0.1))
EXAMPLES = posgen.split("corrected", "cot", "train", train_length=24, sizes=(30, 1, 1))._asdict()
EXAMPLES["targets"] = EXAMPLES.pop("labels")


def fit(seeds, tables, folder, training=TRAINING, **options):
    rows = train.Rows(30, 8, seeds)  # four batches an epoch, the last with two rows missing
    run = train.fit_many(
        CONFIG, seeds, tables, rows.__getitem__, training, folder, examples=EXAMPLES, **options
    )
    return np.asarray([record["loss"] for record in run.history if "loss" in record]), run


def test_each_run_equals_itself_alone_over_50_steps_and_all_compile_once(tmp_path, monkeypatch):
    traces = []
    step = many_program.train_step
    monkeypatch.setattr(many_program, "train_step", lambda *arguments: traces.append(1) or step(*arguments))
    many_program._program.cache_clear()
    together = fit(SEEDS, TABLES, tmp_path / "together")[0]
    assert len(traces) == 1 and together.shape == (50, 4)
    for e in (0, 3):
        alone, _ = fit([SEEDS[e]], [TABLES[e]], tmp_path / str(e))
        np.testing.assert_allclose(together[:, e], alone[:, 0], rtol=1e-5)
    assert np.abs(together[-1, :2] - together[-1, 2:]).min() > 1e-3  # another seed is another run
    assert np.abs(together[-1, 0] - together[-1, 1]) > 1e-4  # another table too


def test_rows_are_a_function_of_seed_and_step_and_cover_each_epoch():
    rows = train.Rows(30, 8, [5, 5, 6])
    assert rows.steps_per_epoch == 4
    epochs = [np.concatenate([rows[4 * epoch + i] for i in range(4)], axis=1) for epoch in range(2)]
    for epoch in epochs:
        for order in epoch:
            assert sorted(order) == [-1, -1, *range(30)] and (order[:30] >= 0).all()
        assert (epoch[0] == epoch[1]).all() and (epoch[0] != epoch[2]).any()
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(train.Rows(30, 8, [6])[3][0], rows[3][2])
    with pytest.raises(ValueError, match="at least one row and one per batch, got 0 and 8"):
        train.Rows(0, 8, [1])


def test_nothing_of_a_row_that_is_not_there_is_scored():
    examples = {name: jnp.asarray(x) for name, x in EXAMPLES.items()}
    batch = many_program._batch(examples, jnp.array([4, 7, -1]))
    np.testing.assert_array_equal(batch["tokens"][:2], examples["tokens"][np.array([4, 7])])
    np.testing.assert_array_equal(batch["labels"][:2, :-1], examples["targets"][np.array([4, 7])][:, 1:])
    assert (batch["labels"][2] == -100).all()
    tokens = examples["tokens"]
    halves = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= 12, tokens.shape).astype(jnp.int32)
    packed = many_program._batch({"tokens": tokens, "segment_ids": halves}, jnp.array([4, -1]))
    expected = np.append(tokens[4, 1:], -100)
    expected[11] = -100  # the last token of one document does not predict the next one's first
    np.testing.assert_array_equal(packed["labels"][0], expected)


def test_a_last_target_beyond_the_tokens_is_predicted_too():
    """64 positions read and 64 predicted is what 65 read and 64 predicted is."""
    whole = {name: jnp.asarray(x[:6]) for name, x in EXAMPLES.items()}
    shorter = {"tokens": whole["tokens"][:, :-1], "targets": whole["targets"]}
    params = many_program.create(CONFIG, jax.random.key(0))
    np.testing.assert_allclose(loss(params, whole, TABLES[0]), loss(params, shorter, TABLES[0]), rtol=1e-6)


def test_more_runs_than_memory_holds_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda devices: 2**20)
    message = r"4 runs at once need .* on each of 4 cpu devices, of which 1 MiB are free: not even one fits"
    with pytest.raises(ValueError, match=message):
        fit(SEEDS, TABLES, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mapped, fit", [("vmap", 10), ("map", 12)])
@unchecked()  # a program's figures stand for the program
def test_how_many_runs_fit(monkeypatch, mapped, fit):
    """20 runs on two devices: 100 MiB a run that stays (arguments and results), 20 MiB of temporaries."""
    MiB = 2**20
    figures = {"argument": 900, "output": 900, "alias": 800, "temp": 200}
    analysis = SimpleNamespace(**{f"{name}_size_in_bytes": n * MiB for name, n in figures.items()})
    compiled = SimpleNamespace(memory_analysis=lambda: analysis)
    mesh = many_program.Mesh(jax.devices()[:2], ("runs",))
    monkeypatch.setattr(memory, "free", lambda devices: 1200 * MiB)
    many_program._refuse_too_many(compiled, 20, mesh, mapped)
    monkeypatch.setattr(memory, "free", lambda devices: None)
    many_program._refuse_too_many(compiled, 20, mesh, mapped)
    monkeypatch.setattr(memory, "free", lambda devices: {"map": 810, "vmap": 610}[mapped] * MiB)
    with pytest.raises(ValueError, match=f"need 1.2 GiB on each of 2 cpu devices.*about {fit} runs fit"):
        many_program._refuse_too_many(compiled, 20, mesh, mapped)
