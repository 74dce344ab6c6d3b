"""PosGen's T5-style decoder against the reference's numbers, and where its dropout is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import rope
from resonance_jax.model import DecoderConfig, forward, head, hidden_states, linear_cross_entropy
from resonance_jax.model import decoder as decoder_module
from resonance_jax.model import decoder_layer as layer_module
from resonance_jax.model.parameters import create

LOGITS, LOSS, GRAD_NORM = 2e-4, 5e-5, 1e-3  # absolute, absolute, relative

CONFIG = DecoderConfig(
    vocab_size=22,
    d_model=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=64,
    d_ff=64,
    norm_eps=1e-6,
    tie_embeddings=True,
    mlp="relu",
    rope_layout="interleaved",
    attention_scale=1.0,
    head_scale=32**-0.5,
)
NAMES = {
    "embed": "shared.weight",
    "final_norm": "decoder.final_layer_norm.weight",
    "layers/attn_norm": "decoder.block.{}.layer.0.layer_norm.weight",
    "layers/q": "decoder.block.{}.layer.0.SelfAttention.q.weight",
    "layers/k": "decoder.block.{}.layer.0.SelfAttention.k.weight",
    "layers/v": "decoder.block.{}.layer.0.SelfAttention.v.weight",
    "layers/o": "decoder.block.{}.layer.0.SelfAttention.o.weight",
    "layers/mlp_norm": "decoder.block.{}.layer.1.layer_norm.weight",
    "layers/up": "decoder.block.{}.layer.1.DenseReluDense.wi.weight",
    "layers/down": "decoder.block.{}.layer.1.DenseReluDense.wo.weight",
}
"""Our path -> the reference's name; its matrices are [out, in]."""

SCALE = 257 / 65


def table(method="default", **options):
    return rope.frequencies(rope.RopeSpec(method=method, head_dim=64, **options))


# The reference trains every type unscaled and evaluates it scaled; its YaRN takes the extended length for L.
YARN = {"scale": SCALE, "train_length": 257, "beta_fast": 2.0, "beta_slow": 1.0}
PLAIN, RESONANT = table(), table(resonance=True)
STILL = rope.from_inv_freq(np.zeros(32))
TYPES = {
    "none": (STILL, STILL),
    "rotary_hf": (PLAIN, PLAIN),
    "rotary_scaled_linear": (PLAIN, table("linear", scale=SCALE)),
    "rotary_scaled_ntk": (PLAIN, table("ntk", scale=SCALE)),
    "rotary_scaled_yarn": (PLAIN, table("yarn", **YARN)),
    "rotary_resonance": (RESONANT, RESONANT),
    "rotary_resonance_ntk": (RESONANT, table("ntk", scale=SCALE, resonance=True)),
    "rotary_resonance_yarn": (RESONANT, table("yarn", resonance=True, **YARN)),
}
"""Position type -> the tables it trains and is evaluated with."""


@pytest.fixture(scope="module")
def weights(goldens):
    _, stored = goldens.find("t5_posgen.npz", "weights")
    stored = {name: jnp.asarray(x, jnp.float32) for name, x in stored.items()}
    get = lambda name: stored[name] if name == NAMES["embed"] else stored[name].T  # a vector is its own .T
    params = {path: get(name) for path, name in NAMES.items() if "{}" not in name}
    params["layers"] = {
        path.removeprefix("layers/"): jnp.stack([get(name.format(layer)) for layer in range(2)])
        for path, name in NAMES.items()
        if "{}" in name
    }
    return params


@pytest.fixture(scope="module")
def tokens(goldens):
    return goldens.find("t5_posgen.npz", "inputs")[1]["ids"]


def loss(params, tokens, freqs):
    """EOS and the four seeds are given, the rest is predicted."""
    hidden = hidden_states(CONFIG, params, tokens, freqs)[:, 4:-1]
    return linear_cross_entropy(hidden, head(CONFIG, params), tokens[:, 5:]).mean()


logits_and_loss = jax.jit(
    lambda p, tokens, freqs: (forward(CONFIG, p, tokens, freqs), loss(p, tokens, freqs))
)
gradients = jax.jit(jax.grad(loss))


def close(ours, golden, tolerance):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=tolerance)


@pytest.mark.parametrize("id", TYPES)
def test_training_logits_loss_and_gradients(goldens, weights, tokens, id):
    _, golden = goldens.find("t5_posgen.npz", id)
    freqs, _ = TYPES[id]
    logits, value = logits_and_loss(weights, tokens[:, :65], freqs)
    close(logits, golden["train_logits"], LOGITS)
    close(value, golden["train_loss"], LOSS)

    grads = gradients(weights, tokens[:, :65], freqs)
    norms = {}
    for path, name in NAMES.items():
        leaf = grads["layers"][path.removeprefix("layers/")] if "{}" in name else grads[path]
        for layer in range(2) if "{}" in name else (None,):
            norms[name.format(layer)] = np.linalg.norm(leaf if layer is None else leaf[layer])
    names = sorted(goldens.find("t5_posgen.npz", "weights")[1])
    pairs = [
        (norms[name], norm) for name, norm in zip(names, golden["train_grad_norms"], strict=True) if norm > 0
    ]
    # `none` comes to 2e-4: one unit is 1.7e-7 before its ReLU, which float32 rounds to either side.
    assert len(pairs) == 12  # all but the reference's frozen MLPs and its unused relative bias
    np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=GRAD_NORM)


@pytest.mark.parametrize("id", TYPES)
def test_evaluation_at_the_extended_length_and_short(goldens, weights, tokens, id):
    _, golden = goldens.find("t5_posgen.npz", id)
    _, freqs = TYPES[id]
    logits, value = logits_and_loss(weights, tokens, freqs)
    close(np.asarray(logits)[:, golden["eval_rows"]], golden["eval_logits"], LOGITS)
    close(value, golden["eval_loss"], LOSS)
    np.testing.assert_array_equal(np.asarray(logits).argmax(-1), golden["eval_argmax"])
    logits, value = logits_and_loss(weights, tokens[:, :65], freqs)
    close(logits[:, -8:], golden["eval_short_logits_last8"], LOGITS)
    close(value, golden["eval_short_loss"], LOSS)


def test_every_golden_is_compared(goldens):
    assert {entry["id"] for entry in goldens.of_kind("t5_logits")} == set(TYPES)


# Dropout.


def test_dropout_is_where_t5_has_it(monkeypatch):
    """Embedding; attention weights, attention output; inside the MLP, after it; final norm."""
    found = []
    attention, dropout = layer_module.attention, layer_module.dropout

    def spied_attention(q, k, v, **options):
        found.append(("attention weights", options["dropout"] if options["key"] is not None else 0.0))
        return attention(q, k, v, **options)

    def spied_dropout(x, rate, key):
        found.append((x.shape, rate if key is not None else 0.0))
        return dropout(x, rate, key)

    monkeypatch.setattr(layer_module, "attention", spied_attention)
    for module in (decoder_module, layer_module):
        monkeypatch.setattr(module, "dropout", spied_dropout)
    config, tokens = CONFIG.replace(dropout=0.1), np.zeros((3, 7), np.int32)
    shapes = jax.eval_shape(lambda key: create(config, key), jax.random.key(0))

    def sites(key):
        found.clear()
        jax.eval_shape(lambda p: hidden_states(config, p, tokens, PLAIN, key=key), shapes)
        return list(found)

    x, inside = (3, 7, 32), (3, 7, 64)
    everywhere = [x, "attention weights", x, inside, x, x]
    assert sites(jax.random.key(1)) == [(site, 0.1) for site in everywhere]
    assert sites(None) == [(site, 0.0) for site in everywhere]


def test_dropout_is_a_function_of_the_key(weights, tokens):
    config = CONFIG.replace(dropout=0.3)
    run = jax.jit(lambda key: hidden_states(config, weights, tokens[:, :9], PLAIN, key=key))
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_every_site_draws_its_own_numbers(monkeypatch, weights, tokens):
    keys = set()

    def spy(name, key_of, *modules):
        def spied(x, *args, **options):  # in the place of the real one: it notes the key and hands x on
            key = key_of(args, options)
            jax.debug.callback(lambda data: keys.add(tuple(data.tolist())), jax.random.key_data(key))
            return x

        for module in modules:
            monkeypatch.setattr(module, name, spied)

    spy("dropout", lambda args, options: args[1], decoder_module, layer_module)
    spy("attention", lambda args, options: options["key"], layer_module)
    config = CONFIG.replace(dropout=0.3)
    jax.jit(lambda key: hidden_states(config, weights, tokens[:1, :3], PLAIN, key=key))(jax.random.key(0))
    jax.effects_barrier()
    assert len(keys) == 2 + 2 * 4  # two outside the layers, four in each
