"""The decoder against the reference's and transformers' numbers, a float64 oracle, and its own promises."""

from zlib import crc32

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity.goldens import HUGGING_FACE, LLAMA, REFERENCE, llama_params
from resonance_jax import rope
from resonance_jax.interop import hf_weights
from resonance_jax.model import Decoder, DecoderConfig, forward, head, hidden_states, linear_cross_entropy
from resonance_jax.model.decoder import segment_positions
from resonance_jax.model.parameters import map_declared
from tests.unchecked import unchecked

LOGITS, LOSS, GRAD_NORM = 2e-4, 5e-5, 1e-3  # absolute, absolute, relative

SMALL = DecoderConfig(vocab_size=31, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)


forward_jit = jax.jit(forward, static_argnums=0)


def mean_nll(config, params, tokens, freqs):
    hidden = hidden_states(config, params, tokens, freqs)
    return linear_cross_entropy(hidden[:, :-1], head(config, params), tokens[:, 1:]).mean()


@pytest.fixture(scope="module")
def golden(goldens):
    """The reference's weights, its inputs, and logits, loss and gradients of them under any table."""
    params, inputs = llama_params(goldens), goldens.find("llama_ref.npz", "inputs")[1]

    @jax.jit
    @chex.assert_max_traces(n=2)  # two lengths, however many encodings
    def logits_and_loss(tokens, freqs):
        return forward(LLAMA, params, tokens, freqs), mean_nll(LLAMA, params, tokens, freqs)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradients(tokens, freqs):
        return jax.grad(lambda p: mean_nll(LLAMA, p, tokens, freqs))(params)

    return logits_and_loss, gradients, params, inputs


def grad_norms(config, grads):
    """Per tensor, in the order of Hugging Face's names."""
    found = {}
    for name, (path, layer, _) in hf_weights.tensors(config).items():
        leaf = grads
        for key in path.split("/"):
            leaf = leaf[key]
        found[name] = np.linalg.norm(leaf if layer is None else leaf[layer])
    return np.array([found[name] for name in sorted(found)])


def check_golden(golden, spec, expected, logits):
    """`expected` has the loss (short, long), `logits` the logits: bitwise equal entries store them once."""
    logits_and_loss, _, _, inputs = golden
    for i, (name, rows) in enumerate((("short", slice(None)), ("long", inputs["long_rows"]))):
        tokens = inputs[f"ids_{name}"]
        ours, loss = logits_and_loss(tokens, rope.frequencies(spec, length=tokens.shape[1]))
        np.testing.assert_allclose(np.asarray(ours)[:, rows], logits[f"logits_{name}"], rtol=0, atol=LOGITS)
        np.testing.assert_allclose(loss, expected["loss"][i], rtol=0, atol=LOSS)


@pytest.mark.parametrize("id", REFERENCE)
def test_reference_logits_loss_and_gradients(golden, goldens, id):
    entry, expected = goldens.find("llama_ref.npz", id)
    twin = entry["bit_identical_to"][0] if "logits_short" not in expected else id
    check_golden(golden, REFERENCE[id], expected, goldens.find("llama_ref.npz", twin)[1])
    _, gradients, _, inputs = golden
    tokens = inputs["ids_short"]
    grads = gradients(tokens, rope.frequencies(REFERENCE[id], length=tokens.shape[1]))
    np.testing.assert_allclose(grad_norms(LLAMA, grads), expected["grad_norms_short"], rtol=GRAD_NORM)


@pytest.mark.parametrize("id", HUGGING_FACE)
def test_transformers_logits_and_loss(golden, goldens, id):
    _, expected = goldens.find("llama_hf.npz", id)
    check_golden(golden, HUGGING_FACE[id], expected, expected)


def test_every_golden_is_compared(goldens):
    ids = lambda kind: {entry["id"] for entry in goldens.of_kind(kind)}
    assert ids("llama_logits") == set(REFERENCE)
    assert ids("llama_logits_hf") == set(HUGGING_FACE)


def test_left_padding_is_a_segment_of_its_own(golden, goldens):
    """The masked golden keeps positions 0 … T-1; its pads are a document that nobody else sees."""
    _, _, params, inputs = golden
    _, arrays = goldens.find("llama_ref.npz", "yarn_res_leftpad")
    mask, tokens = arrays["attention_mask"], inputs["ids_short"]
    positions = np.arange(tokens.shape[1], dtype=np.int32)
    freqs = rope.frequencies(REFERENCE["yarn_res"])
    logits = forward_jit(LLAMA, params, tokens, freqs, positions=positions, segment_ids=mask)
    seen = mask == 1
    assert not seen.all()
    np.testing.assert_allclose(np.asarray(logits)[seen], arrays["logits_short"][seen], rtol=0, atol=LOGITS)


# A float64 oracle: one row, one position, one head at a time.


def oracle(config, params, tokens, freqs, segment_ids=None):
    c = config
    softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    norm = lambda x, scale: x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * scale
    params = jax.tree.map(np.asarray, params)

    def turn(kind, x, position):
        if not kind.rope:
            return x
        own = freqs[kind.name] if isinstance(freqs, dict) else freqs
        inv_freq, factor = own.inv_freq64, float(own.attention_factor)
        half = len(inv_freq)
        a, b, rest = x[:half], x[half : 2 * half], x[2 * half :]
        cos, sin = factor * np.cos(position * inv_freq), factor * np.sin(position * inv_freq)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest])

    logits = []
    for b, row in enumerate(tokens):
        segment = np.zeros(len(row)) if segment_ids is None else segment_ids[b]
        start = [
            next(i for i in range(t + 1) if (segment[i : t + 1] == segment[t]).all()) for t in range(len(row))
        ]
        x = params["embed"][row]
        for layer, kind in enumerate(c.types):
            p = {name: value[layer] for name, value in params["layers"].items()}
            h = norm(x, p["attn_norm"])
            heads = lambda name, n: (h @ p[name]).reshape(len(row), n, c.head_dim)  # noqa: B023
            q, k, v = heads("q", c.n_heads), heads("k", c.n_kv_heads), heads("v", c.n_kv_heads)
            out = np.zeros_like(q)
            for t in range(len(row)):
                first = max(start[t], 0 if kind.window is None else t - kind.window + 1)
                for n in range(c.n_heads):
                    m = n // (c.n_heads // c.n_kv_heads)
                    query = turn(kind, q[t, n], t - start[t])
                    keys = [turn(kind, k[s, m], s - start[t]) for s in range(first, t + 1)]
                    weights = softmax(np.array([query @ key for key in keys]) / np.sqrt(c.head_dim))
                    out[t, n] = weights @ v[first : t + 1, m]
            x = x + out.reshape(len(row), -1) @ p["o"]
            h = norm(x, p["mlp_norm"])
            gate = h @ p["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ p["up"])) @ p["down"]
        x = norm(x, params["final_norm"])
        logits.append(x @ (params["embed"].T if c.tie_embeddings else params["head"]))
    return np.stack(logits)


def lively(config):
    """Parameters large enough that attention chooses and norms differ from one."""
    rng = np.random.default_rng(1)
    draw = lambda p: (p.std == 0) + 0.3 * rng.normal(size=p.shape)
    return map_declared(lambda _, p: jnp.asarray(draw(p), jnp.promote_types("float32", config.dtype)), config)


TOKENS = np.random.default_rng(0).integers(0, 31, (2, 12)).astype(np.int32)
PACKED = np.array([[0] * 5 + [1] * 4 + [2] * 3, [7] * 12], np.int32)


@pytest.mark.parametrize(
    ("changes", "options", "segment_ids"),
    [
        ({}, {}, None),
        ({"tie_embeddings": True, "n_kv_heads": 4}, {"partial_rotary_factor": 0.5}, None),
        ({"n_kv_heads": 1, "window": 3}, {"method": "yarn", "scale": 4.0, "train_length": 8}, None),
        ({"window": 4}, {"resonance": True}, PACKED),
    ],
    ids=["grouped-query", "tied-multi-head-partial", "multi-query-window", "packed-window"],
)
def test_float64_oracle(x64, changes, options, segment_ids):
    config = SMALL.replace(dtype="float64", **changes)
    params = lively(config)
    freqs = rope.frequencies(rope.RopeSpec(**{"method": "default", "head_dim": 8, **options}))
    logits = forward_jit(config, params, TOKENS, freqs, segment_ids=segment_ids)
    assert logits.dtype == jnp.float64
    np.testing.assert_allclose(logits, oracle(config, params, TOKENS, freqs, segment_ids), rtol=0, atol=1e-11)


# What the decoder promises.


def test_one_trace_serves_every_encoding():
    run = jax.jit(chex.assert_max_traces(forward, n=1), static_argnums=0)
    params = lively(SMALL)
    tables = [
        rope.frequencies(rope.RopeSpec(method=method, head_dim=8, resonance=resonance, **options), length=64)
        for resonance in (False, True)
        for method, options in (
            ("default", {}),
            ("ntk", {"scale": 8.0}),
            ("dynamic_ntk", {"train_length": 8}),
            ("yarn", {"scale": 8.0, "train_length": 8}),
        )
    ]
    logits = [np.asarray(run(SMALL, params, TOKENS, freqs)) for freqs in tables]
    assert all(np.abs(a - logits[0]).max() > 1e-3 for a in logits[1:])


def test_two_checkpoints_with_different_encodings_share_a_trace():
    run = jax.jit(chex.assert_max_traces(forward, n=1), static_argnums=0)
    for base in (1e4, 5e5):
        lm = Decoder(SMALL.replace(), rope=rope.RopeSpec(head_dim=8, base=base), params=lively(SMALL))
        run(lm.config, lm.params, TOKENS, rope.frequencies(lm.rope))


def test_program_does_not_grow_with_depth():
    freqs = rope.frequencies(rope.RopeSpec(head_dim=8))

    def lines(layers):
        config = SMALL.replace(n_layers=layers)
        shapes = map_declared(lambda _, p: jax.ShapeDtypeStruct(p.shape, jnp.float32), config)
        grad = jax.jit(jax.grad(lambda params: hidden_states(config, params, TOKENS, freqs).sum()))
        return len(grad.lower(shapes).as_text().splitlines())

    assert lines(32) == lines(4)


def test_stacked_frequencies_equal_a_loop():
    params = lively(SMALL)
    specs = [rope.RopeSpec(head_dim=8, base=base, resonance=r) for base in (1e2, 1e4) for r in (False, True)]
    tables = [rope.frequencies(spec) for spec in specs]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tables)
    together = jax.vmap(lambda freqs: forward_jit(SMALL, params, TOKENS, freqs))(stacked)
    for one, freqs in zip(together, tables, strict=True):
        np.testing.assert_allclose(one, forward_jit(SMALL, params, TOKENS, freqs), rtol=0, atol=2e-5)


def test_a_token_changes_nothing_before_it():
    params, freqs = lively(SMALL), rope.frequencies(rope.RopeSpec(head_dim=8))
    before = np.asarray(forward_jit(SMALL, params, TOKENS, freqs))
    for position in (1, 6, 11):
        changed = TOKENS.copy()
        changed[:, position] = (changed[:, position] + 1) % 31
        after = np.asarray(forward_jit(SMALL, params, changed, freqs))
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (np.abs(after[:, position:] - before[:, position:]).max(axis=-1) > 1e-6).all()


def test_packed_documents_equal_separate_ones():
    params, freqs = lively(SMALL), rope.frequencies(rope.RopeSpec(head_dim=8))
    lengths = (5, 4, 3)
    packed = np.asarray(forward_jit(SMALL, params, TOKENS[:1], freqs, segment_ids=PACKED[:1]))[0]
    alone = np.zeros((3, 5), np.int32)  # what follows a document cannot reach back into it
    starts = np.cumsum([0, *lengths])
    for row, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        alone[row, :length] = TOKENS[0, start : start + length]
    separate = np.asarray(forward_jit(SMALL, params, alone, freqs))
    for row, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        np.testing.assert_allclose(packed[start : start + length], separate[row, :length], rtol=0, atol=2e-5)


def test_positions_restart_with_every_document():
    """Rotations are relative, so logits cannot tell; the size of the positions can."""
    restarted = [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2], list(range(12))]
    np.testing.assert_array_equal(segment_positions(PACKED), restarted)


def test_recomputation_changes_no_gradient():
    params, freqs = lively(SMALL), rope.frequencies(rope.RopeSpec(head_dim=8))

    def gradient(remat):
        config = SMALL.replace(remat=remat)
        return jax.jit(jax.grad(lambda p: hidden_states(config, p, TOKENS, freqs).sum()))(params)

    none, full, dots = map(gradient, ("none", "full", "dots"))
    chex.assert_trees_all_close(none, full, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(none, dots, rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_keep_float32_logits_and_gradients():
    params, freqs = lively(SMALL), rope.frequencies(rope.RopeSpec(head_dim=8))
    half = SMALL.replace(dtype="bfloat16")
    logits, exact = (forward_jit(config, params, TOKENS, freqs) for config in (half, SMALL))
    assert logits.dtype == jnp.float32
    assert 1e-4 < float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())
    grads = jax.eval_shape(jax.grad(lambda p: mean_nll(half, p, TOKENS, freqs)), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_first_values_depend_on_the_seed_and_their_own_path_alone():
    key = jax.random.key(3)
    lm = Decoder(SMALL.replace(tie_embeddings=True), key=key)
    for path, first in (("embed", lm.params["embed"]), ("layers/q", lm.params["layers"]["q"])):
        drawn = 0.02 * jax.random.normal(jax.random.fold_in(key, crc32(path.encode())), first.shape)
        np.testing.assert_allclose(first, drawn, rtol=1e-6)
    again = lm.replace_params(lively(lm.config))
    chex.assert_trees_all_equal(again.params, lively(lm.config))
    assert lm.count_parameters() == sum(x.size for x in jax.tree.leaves(lm.params)) == 5952


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda lm, f: lm(TOKENS[0], f), r"tokens must be integers \[B, T\], got int32\[12\]"),
        (lambda lm, f: lm(TOKENS / 2, f), "tokens must be integers"),
        (
            lambda lm, f: lm(TOKENS, f, positions=np.arange(5, dtype=np.int32)),
            r"positions must be .* got \[5\]",
        ),
        (lambda lm, f: lm(TOKENS, f, segment_ids=PACKED[0]), r"segment_ids must be .* got \[12\]"),
        (
            lambda lm, f: lm(TOKENS, rope.frequencies(rope.RopeSpec(head_dim=16))),
            "rotates 16 dims, but a head has 8",
        ),
        (lambda lm, f: lm(TOKENS, jax.tree.map(lambda x: np.stack([x, x]), f)), "expected one encoding"),
        (lambda lm, f: forward(SMALL.replace(dtype="float64"), lm.params, TOKENS, f), "JAX_ENABLE_X64=1"),
        (
            lambda lm, f: jax.eval_shape(
                lambda: forward(SMALL.replace(kernel="magic"), lm.params, TOKENS, f)
            ),
            "magic",
        ),
        (lambda lm, f: SMALL.replace(n_kv_heads=3), "multiple of n_kv_heads"),
        (lambda lm, f: SMALL.replace(d_ff=0), "d_ff must be a positive whole number, got 0"),
        (lambda lm, f: SMALL.replace(window=0), "window must be a positive whole number"),
        (lambda lm, f: SMALL.replace(n_layers=2.0), "n_layers must be a positive whole number"),
        (lambda lm, f: SMALL.replace(mlp="gelu"), "unknown mlp 'gelu'; expected one of swiglu, geglu, relu"),
        (lambda lm, f: SMALL.replace(remat="some"), "unknown remat 'some'"),
        (lambda lm, f: SMALL.replace(dropout=1.0), "dropout must be in"),
    ],
)
@unchecked()
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(Decoder(SMALL, params=lively(SMALL)), rope.frequencies(rope.RopeSpec(head_dim=8)))
