"""PosGen's training against the reference: 25 steps from the same weights, its MLP frozen and trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import train
from resonance_jax.train.optimizer import make_optimizer
from resonance_jax.train.state import new_state
from resonance_jax.train.step import summed_loss, train_step
from tests.model import test_t5
from tests.model.test_t5 import CONFIG, NAMES, TYPES

LOSS, NORM = 5e-5, 1e-3  # absolute, relative
MLP = ("layers/mlp_norm", "layers/up", "layers/down")
weights, tokens = test_t5.weights, test_t5.tokens  # fixtures


def labelled(tokens) -> dict:
    """EOS and the four seeds are given, the rest is predicted."""
    return {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(tokens).at[:, :5].set(-100)}


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
    steps = entry["total_steps"]
    tx = make_optimizer(optimizer, steps)
    trained_with, evaluated_with = TYPES[id]
    batch = labelled(tokens[:, :65])

    @jax.jit
    def run(state):
        step = lambda state, _: train_step(CONFIG, tx, state, batch, trained_with)
        return jax.lax.scan(step, state, length=steps)

    state, metrics = run(new_state(weights, tx, jax.random.key(0)))
    np.testing.assert_allclose(metrics["loss"], golden["loss"], rtol=0, atol=LOSS)
    total, count = jax.jit(lambda p: summed_loss(CONFIG, p, labelled(tokens), evaluated_with))(state.params)
    np.testing.assert_allclose(total / count, golden["eval_loss_extended"], rtol=0, atol=LOSS)

    names = sorted(goldens.find("t5_posgen.npz", "weights")[1])
    norms = dict(zip(names, golden["final_param_norms"], strict=True))
    for path, name in NAMES.items():
        if "{}" not in name:
            np.testing.assert_allclose(np.linalg.norm(state.params[path]), norms[name], rtol=NORM)
            continue
        for layer, leaf in enumerate(state.params["layers"][path.removeprefix("layers/")]):
            np.testing.assert_allclose(np.linalg.norm(leaf), norms[name.format(layer)], rtol=NORM)
