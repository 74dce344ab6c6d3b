"""Every family against transformers: tensor by tensor in float64, as it is in float32, and its output."""

import functools
import json

import jax
import numpy as np
import pytest

from resonance_jax import evaluate, generate, interop, rope
from resonance_jax.interop.export_check import check_export
from resonance_jax.interop.families import FAMILIES
from resonance_jax.interop.parity_check import parity
from resonance_jax.model import LayerType, forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16,
    pad_token_id=None,  # a row of the embedding that is padding has no gradient in torch
    bos_token_id=1,
    eos_token_id=2,
)
WINDOW = dict(use_sliding_window=True, sliding_window=5)
SMALL = {
    "Qwen2": ("Qwen2Config", dict(tie_word_embeddings=True)),
    "Qwen2, windows": ("Qwen2Config", WINDOW | dict(max_window_layers=1)),
    "Qwen3": ("Qwen3Config", dict(head_dim=16)),
    "SmolLM3": ("SmolLM3Config", dict(no_rope_layer_interval=2)),
    "SmolLM3, windows": ("SmolLM3Config", WINDOW | dict(no_rope_layer_interval=2)),
    "Gemma 3": (
        "Gemma3TextConfig",
        dict(
            sliding_window=5,
            query_pre_attn_scalar=6,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
    ),
}
every = pytest.mark.parametrize("name", SMALL)
main = pytest.mark.parametrize("name", [name for name in SMALL if "windows" not in name])
TOKENS = np.random.default_rng(0).integers(3, 61, (2, 40)).astype(np.int32)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A directory of each small model, with weights that make attention choose and norms differ."""

    @functools.cache
    def make(name):
        kind, more = SMALL[name]
        config = getattr(transformers, kind)(**SIZES | more)
        model = transformers.AutoModelForCausalLM.from_config(config)
        drawn = torch.Generator().manual_seed(1)
        for path, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=drawn)
            flat = 0.3 * values + (path.endswith("norm.weight") and name != "Gemma 3")
            parameter.data = flat if values.ndim == 1 else 1.5 * values * values.shape[1] ** -0.5
        folder = tmp_path_factory.mktemp("families") / name
        model.save_pretrained(folder)
        return folder

    return make


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def swapped(own):
    return rope.restate(own, "resonance-yarn", scale=4.0, train_length=8)


@every
def test_every_tensor_in_float64(folder_of, name):
    """Under the own encoding with all gradients, and under one that transformers has no name for."""
    folder = folder_of(name)
    own = parity(folder, lengths=[40], gradients=True)
    assert own.ok, own.verdict()
    assert {tap.name for tap in own.taps if tap.tolerance == 1e-9} >= {"embedding", "layer 2 q", "logits"}
    other = parity(folder, swapped(interop.open_checkpoint(folder).rope), lengths=[40])
    assert other.ok, other.verdict()


@main
def test_unmodified_transformers_in_float32(folder_of, name):
    lm = interop.load_hf(folder_of(name))
    with jax.default_matmul_precision("highest"), torch.no_grad():
        ours = lm(TOKENS, rope.frequencies(lm.rope))
        logits = theirs(folder_of(name))(torch.as_tensor(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)
    other = lm(TOKENS, rope.frequencies(swapped(lm.rope)))
    assert np.abs(ours - other).max() > 1e-2


@every
def test_generation_is_transformers_token_by_token(folder_of, name):
    """A prompt longer than the window, then twice as many tokens again: the cache, windows and all."""
    lm, prompt = interop.load_hf(folder_of(name)), TOKENS[0, :8]
    ours = generate.generate(lm, [prompt], rope.frequencies(lm.rope), max_new_tokens=24).tokens[0]
    model = theirs(folder_of(name))
    model.generation_config.eos_token_id = None
    ids = torch.as_tensor(prompt)[None].long()
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    np.testing.assert_array_equal(ours, said[0, 8:].numpy())


@main
def test_a_sweep_of_perplexity(folder_of, name):
    """At two lengths, under its own encoding, whose NLL is that of transformers' logits, and another."""
    lm = interop.load_hf(folder_of(name))
    documents = [np.asarray(row, np.int32) for row in TOKENS]
    found = evaluate.sweep(lm, documents, lm.rope, [10, 20])
    other = evaluate.sweep(lm, documents, swapped(lm.rope), [10, 20])
    with torch.no_grad():
        logits = theirs(folder_of(name))(torch.as_tensor(TOKENS[:, :20]).long()).logits
    log = torch.log_softmax(logits.double(), -1).numpy()
    nll = -np.take_along_axis(log[:, :-1], TOKENS[:, 1:20, None], -1)[..., 0]
    for length in (10, 20):
        assert found[length].token_mean == pytest.approx(np.exp(nll[:, : length - 1].mean()), rel=1e-4)
        assert found[length].token_mean != pytest.approx(other[length].token_mean, rel=1e-5)


@every
def test_saving_gives_the_same_weights_and_config_back(folder_of, name, tmp_path):
    folder = folder_of(name)
    lm = interop.load_hf(folder)
    interop.save_hf(lm, tmp_path / "again")
    again = interop.load_hf(tmp_path / "again")
    assert (again.config, again.rope, again.context_length) == (lm.config, lm.rope, lm.context_length)
    jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
    with torch.no_grad():
        both = [
            theirs(each)(torch.as_tensor(TOKENS).long()).logits.numpy()
            for each in (folder, tmp_path / "again")
        ]
    np.testing.assert_array_equal(*both)


@main
def test_another_encoding_is_exported(folder_of, name, tmp_path):
    """Resonance YaRN, which transformers reads as longrope, on the layers that see everything."""
    lm = interop.load_hf(folder_of(name))
    spec = swapped(lm.rope)
    interop.save_hf(lm, tmp_path / "yarn", rope=spec)
    again = interop.load_hf(tmp_path / "yarn")
    tables, want = rope.frequencies(again.rope), rope.frequencies(spec)
    for one, other in zip(jax.tree.leaves(tables), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    tables = tables if isinstance(tables, dict) else {"": tables}
    want = want if isinstance(want, dict) else {"": want}
    assert all((tables[one].wavelength == want[one].wavelength).all() for one in want)
    assert any((each.wavelength > 0).any() for each in tables.values())
    with torch.no_grad():
        logits = theirs(tmp_path / "yarn")(torch.as_tensor(TOKENS[:, :30]).long()).logits.numpy()
    np.testing.assert_allclose(lm(TOKENS[:, :30], rope.frequencies(spec)), logits, rtol=0, atol=5e-4)


def test_gemma_in_the_layout_of_transformers_4(folder_of, tmp_path):
    """Two bases beside each other, the scaling on the layers that see everything, a pattern as a number."""
    stated = json.loads((folder_of("Gemma 3") / "config.json").read_text())
    new = {key: stated[key] for key in stated if key not in ("rope_parameters", "layer_types", "dtype")}
    new |= {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    }
    config, specs = interop.hf_config.from_hf_config(new)
    assert config == interop.open_checkpoint(folder_of("Gemma 3")).config
    assert specs[rope.SLIDING] == rope.RopeSpec(head_dim=8, train_length=16)
    assert (specs[rope.FULL].method, specs[rope.FULL].scale, specs[rope.FULL].base) == ("linear", 8.0, 1e6)
    silent = {key: new[key] for key in new if "rope" not in key and key not in ("head_dim", "sliding_window")}
    config, specs = interop.hf_config.from_hf_config(silent)
    want = transformers.Gemma3TextConfig(**silent)
    assert (config.head_dim, config.types[0].window) == (want.head_dim, want.sliding_window)
    assert {name: spec.base for name, spec in specs.items()} == {
        name: own["rope_theta"] for name, own in want.rope_parameters.items()
    }


@every
def test_what_a_config_leaves_out_is_what_transformers_assumes(folder_of, name):
    """Its layers' windows and rotations, its base and its sizes."""
    stated = json.loads((folder_of(name) / "config.json").read_text())
    keys = ("layer_types", "no_rope_layers", "rope_parameters", "num_key_value_heads", "tie_word_embeddings")
    silent = {key: value for key, value in stated.items() if key not in (*keys, "rms_norm_eps")}
    if name == "Gemma 3":
        silent["sliding_window_pattern"] = 2
    config, specs = interop.hf_config.from_hf_config({**silent, "num_attention_heads": 32})
    want = getattr(transformers, SMALL[name][0])(**silent)
    assert config.n_kv_heads == want.num_key_value_heads
    assert (config.tie_embeddings, config.norm_eps) == (want.tie_word_embeddings, want.rms_norm_eps)
    assert [kind.window is not None for kind in config.types] == [
        "sliding" in one for one in want.layer_types
    ]
    assert [kind.rope for kind in config.types] == [bool(r) for r in getattr(want, "no_rope_layers", [1] * 3)]
    if isinstance(specs, rope.LayerSpecs):
        bases = {one: own["rope_theta"] for one, own in want.rope_parameters.items()}
        assert {one: spec.base for one, spec in specs.items()} == bases
    else:
        assert specs.base == want.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("Qwen3", {"num_experts": 8}, "a mixture of experts \\(num_experts=8\\)"),
        ("Qwen3", {"model_type": "qwen3_moe"}, 'model_type="qwen3_moe"'),
        ("Gemma 3", {"vision_config": {"depth": 1}}, "a vision tower"),
        ("Gemma 3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("Gemma 3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("Gemma 3", {"hidden_activation": "silu"}, 'hidden_activation="silu"'),
        ("Gemma 3", {"query_pre_attn_scalar": "x"}, "query_pre_attn_scalar is"),
        ("Qwen3", {"attention_bias": True}, "attention_bias=true"),
        ("Qwen2", {"layer_types": ["full_attention"]}, "must list all 3 layers"),
        ("Qwen2", {"layer_types": ["chunked_attention"] * 3}, "'chunked_attention'"),
        (
            "Qwen2",
            {"layer_types": ["sliding_attention"] * 3, "sliding_window": None},
            "sliding_window is None",
        ),
        ("SmolLM3", {"no_rope_layers": [1]}, "must list all 3 layers"),
        (
            "Gemma 3",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "no RoPE for the layer",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(folder_of, name, changes, sentence):
    stated = json.loads((folder_of(name) / "config.json").read_text())
    with pytest.raises(ValueError, match=sentence):
        interop.hf_config.from_hf_config(stated | changes)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("Qwen2", {"qk_norm": True}, "none of Hugging Face's .* qkv_bias=True, qk_norm=True"),
        ("Qwen2", {"embed_scale": 2.0}, "no embed_scale=2.0"),
        ("Gemma 3", {"embed_scale": 2.0}, "the root of d_model, not 2.0"),
        ("Gemma 3", {"attention_scale": 0.3}, "one over the root of a whole number, not 0.3"),
        ("Qwen3", {"layer_types": (LayerType("any"),)}, "full_attention and of one sliding_attention"),
        ("Qwen3", {"layer_types": (LayerType("full_attention_without_rope", rope=False),)}, "some do not"),
    ],
)
def test_what_no_family_has_is_not_saved(folder_of, tmp_path, name, changes, sentence):
    lm = interop.load_hf(folder_of(name))
    with pytest.raises(ValueError, match=sentence):
        interop.save_hf(lm.replace(config=lm.config.replace(**changes)), tmp_path / "odd")


def test_families_are_told_apart_by_their_fields(folder_of):
    """No two families claim a decoder: what was read is written as what it was."""
    for name in SMALL:
        stated = json.loads((folder_of(name) / "config.json").read_text())
        assert (
            interop.families.family_of(interop.open_checkpoint(folder_of(name)).config)
            == stated["model_type"]
        )
    assert len({family.kind for family in FAMILIES.values()}) == len(FAMILIES)


def test_a_bias_and_norms_are_used(folder_of):
    """Zeroing each kind of parameter that LLaMA does not have moves the logits."""
    for name, paths in (("Qwen2", ("q_bias", "v_bias")), ("Gemma 3", ("q_norm", "k_norm", "attn_post_norm"))):
        lm = interop.load_hf(folder_of(name))
        freqs = rope.frequencies(lm.rope)
        logits = forward(lm.config, lm.params, TOKENS, freqs)
        for path in paths:
            layers = {**lm.params["layers"], path: 0 * lm.params["layers"][path]}
            moved = forward(lm.config, {**lm.params, "layers": layers}, TOKENS, freqs)
            assert np.abs(moved - logits).max() > 1e-3, path


def test_an_exported_gemma_is_checked_type_by_type(folder_of):
    """transformers under our phases is ours to the order of sums, under its own to what float32 loses."""
    found = check_export(folder_of("Gemma 3"), TOKENS[0], [12, 40], 16, new_tokens=8)
    assert found["greedy"]["identical"]
    for row in found["rows"]:
        assert row["logits_alike"] < 1e-5 and row["cos_error"] < 1e-4
