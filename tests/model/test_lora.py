"""Adapters: nothing at first, equal to the merged weights, trained as PEFT trains them, on any mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import interop, model, rope, train
from resonance_jax.interop.hf_weights import NAMES
from resonance_jax.model import lora
from resonance_jax.parallel.mesh import make_mesh
from resonance_jax.train.run_program import RunProgram
from tests.train.small import CONFIG, ENCODINGS, batches

LORA = lora.LoraConfig(rank=4, alpha=16.0, dropout=0.0)
DROPPING = lora.LoraConfig(rank=4, alpha=16.0, dropout=0.5)


@pytest.fixture(scope="module")
def lm():
    return model.Decoder(CONFIG, jax.random.key(0))


def moved(adapters):
    """Adapters whose second matrix is not zero any more."""
    rng = np.random.default_rng(0)
    draw = lambda b: jnp.asarray(0.02 * rng.standard_normal(b.shape), b.dtype)
    return {path: lora.Adapter(a, draw(b)) for path, (a, b) in adapters.items()}


def logits(params, key=None):
    return model.forward(CONFIG, params, batches(0)["tokens"], ENCODINGS[0], key=key)


def test_nothing_at_first_and_the_merged_weights_later(lm):
    fresh = lora.create(CONFIG, LORA, jax.random.key(1))
    assert fresh["layers/k"].a.shape == (2, 32, 4) and fresh["layers/k"].b.shape == (2, 4, 16)
    assert {path.removeprefix("layers/") for path in fresh} == set(lora.LINEAR)
    want = logits(lm.params)
    # Two programs: a compiler may add up in another order, but nothing is added.
    np.testing.assert_allclose(logits(lora.adapt(lm.params, fresh, LORA)), want, rtol=0, atol=1e-6)
    later = moved(fresh)
    adapted = logits(lora.adapt(lm.params, later, LORA))
    assert np.abs(adapted - want).max() > 1e-2
    np.testing.assert_allclose(adapted, logits(lora.merge(lm.params, later, LORA)), atol=1e-5)


def test_dropout_comes_from_the_key_alone(lm):
    adapted = lora.adapt(lm.params, moved(lora.create(CONFIG, DROPPING, jax.random.key(1))), DROPPING)
    one, again, other = (logits(adapted, jax.random.key(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 and np.abs(one - logits(adapted)).max() > 1e-3
    np.testing.assert_array_equal(logits(lm.params, jax.random.key(5)), logits(lm.params))


def fit(lm, run_dir, config=DROPPING, steps=3):
    optimizer = train.OptimizerConfig(lr=1e-2, schedule="constant", warmup=0, weight_decay=0.1)
    settings = train.TrainConfig(steps, optimizer)
    data = lambda step: batches(step, rows=8)
    return train.fit(lm, data, ENCODINGS[0], settings, run_dir, lora=config)


def test_what_is_trained_and_that_a_mesh_changes_nothing(lm, tmp_path):
    """Norms and embeddings by flag; everything else only through its adapter; the head never."""
    whole = lora.LoraConfig(rank=4, norms=True, embeddings=True, dropout=0.0)
    config = CONFIG.replace(tie_embeddings=False)
    one = model.Decoder(config, jax.random.key(0))
    run = fit(one, tmp_path / "one", whole)
    alone = [record["loss"] for record in run.history]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), run.lm.params, one.params)
    assert changed.pop("head") is False and all(jax.tree.leaves(changed))
    run = fit(lm, tmp_path / "plain")
    changed = lora.flatten(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), run.lm.params, lm.params))
    assert {path for path, so in changed.items() if so} == {f"layers/{name}" for name in lora.LINEAR}
    mesh = make_mesh(fsdp=2, tensor=2, sequence=2)
    cut = fit(model.Decoder(config, jax.random.key(0), mesh=mesh), tmp_path / "mesh", whole)
    np.testing.assert_allclose([record["loss"] for record in cut.history], alone, rtol=1e-5)


def test_settings_that_cannot_be(lm, tmp_path):
    with pytest.raises(ValueError, match="LoRA needs rank >= 1"):
        lora.LoraConfig(rank=0)
    frozen = train.TrainConfig(1, train.OptimizerConfig(freeze=("embed",)))
    with pytest.raises(ValueError, match="LoRA freezes the weights itself"):
        train.fit(lm, batches, ENCODINGS[0], frozen, tmp_path, lora=LORA)


@pytest.mark.parity
def test_the_updates_are_pefts(tmp_path):
    """Five steps of torch's AdamW on PEFT's adapters, from the same first ones."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens = np.random.default_rng(0).integers(0, 97, (5, 4, 32)).astype(np.int32)
    shape = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager")
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads))
    llama.save_pretrained(tmp_path / "model")
    modules = [NAMES[f"layers/{name}"][0].split(".")[-2] for name in lora.LINEAR]
    theirs = peft.get_peft_model(
        llama, peft.LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules=modules)
    )
    kept = lambda: {
        name: p.detach().clone().numpy() for name, p in theirs.named_parameters() if p.requires_grad
    }
    before = kept()
    adamw = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = transformers.get_linear_schedule_with_warmup(adamw, 2, 5)
    for row in torch.as_tensor(tokens, dtype=torch.long):
        adamw.zero_grad()
        theirs(row, labels=row).loss.backward()
        adamw.step()
        schedule.step()
    after = kept()

    ours = interop.load_hf(tmp_path / "model")
    optimizer = train.OptimizerConfig(lr=1e-3, weight_decay=0.1, warmup=0.4)
    program = RunProgram(ours.config, train.TrainConfig(5, optimizer), lora=LORA)
    trained, frozen = program.place(ours.params, 0)

    def name(path, layer, letter):
        module = NAMES[path][0].format(layer=layer).removesuffix(".weight")
        return f"base_model.model.{module}.lora_{letter}.default.weight"

    stack = lambda path, letter: jnp.stack([before[name(path, layer, letter)].T for layer in range(2)])
    trained["adapters"] = {
        path: lora.Adapter(stack(path, "A"), stack(path, "B")) for path in trained["adapters"]
    }
    state = program.first_state(trained, 0)
    freqs = rope.frequencies(ours.rope, length=32)
    for row in tokens:
        state, _ = program.step(state, frozen, {"tokens": row}, freqs)
    for path, adapter in state.params["adapters"].items():
        for letter, matrix in zip("AB", adapter, strict=True):
            for layer in range(2):
                own = name(path, layer, letter)
                wanted = after[own] - before[own]
                difference = np.asarray(matrix[layer]).T - after[own]
                assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(wanted), own
    merged = program.merged(state.params, frozen)
    theirs = theirs.merge_and_unload()
    chex.assert_trees_all_close(
        merged["layers"]["q"][1], theirs.model.layers[1].self_attn.q_proj.weight.detach().numpy().T, atol=1e-5
    )
