"""Configs read and written, held to the transformers that is installed."""

import dataclasses
import json
import random

import numpy as np
import pytest

from resonance_jax import rope

LLAMA = {"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 32_768}


def lists(pairs, seed=0):
    rng = random.Random(seed)
    return sorted(rng.uniform(1, 1.5) for _ in range(pairs)), sorted(rng.uniform(1, 30) for _ in range(pairs))


def drawn(seed):
    """(rope type, its parameters, config keys) of one random setting for each rope type."""
    rng = random.Random(seed)
    base = round(10 ** rng.uniform(3, 7), 2)
    original = rng.choice([64, 512, 2048, 4096, 8192])
    factor = rng.choice([1.5, 2.0, 4.0, 8.0, 32.0])
    longest = int(original * factor)
    head_dim = rng.choice([16, 64, 80, 128])
    short, long = lists(head_dim // 2, seed)
    fast = rng.uniform(8, 64)
    shared = {"head_dim": head_dim, "rope_theta": base}
    scaled = {"factor": factor, "original_max_position_embeddings": original}
    return [
        ("default", {}, {**shared, "max_position_embeddings": longest}),
        ("linear", {"factor": factor}, {**shared, "max_position_embeddings": longest}),
        ("dynamic", {"factor": factor}, {**shared, "max_position_embeddings": original}),
        ("yarn", scaled, {**shared, "max_position_embeddings": longest}),
        (
            "yarn",
            {**scaled, "beta_fast": fast, "beta_slow": fast / 16, "truncate": False, "attention_factor": 1.1},
            {**shared, "max_position_embeddings": longest},
        ),
        (
            "yarn",
            {**scaled, "factor": None, "mscale": 0.7, "mscale_all_dim": rng.choice([0.0, 1.2])},
            {**shared, "max_position_embeddings": longest},
        ),
        ("yarn", {"factor": factor, "mscale": 0.7}, {**shared, "max_position_embeddings": original}),
        (
            "llama3",
            {**scaled, "low_freq_factor": 1.0, "high_freq_factor": rng.uniform(2, 8)},
            {**shared, "max_position_embeddings": longest},
        ),
        (
            "longrope",
            {**scaled, "short_factor": short, "long_factor": long},
            {**shared, "max_position_embeddings": longest},
        ),
        (
            "longrope",
            {"short_factor": short, "long_factor": long},
            {
                **shared,
                "max_position_embeddings": longest,
                "original_max_position_embeddings": original,
            },
        ),
        (
            "proportional",
            {"factor": factor, "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0])},
            {**shared, "max_position_embeddings": longest},
        ),
    ]


LAYOUTS = ("v4 type", "v4 rope_type", "v5")


def laid_out(layout, rope_type, parameters, config):
    """The same setting as a version 4 (`type`, or `rope_type`) or version 5 config.json."""
    config = json.loads(json.dumps(config))
    if layout == "v5":
        return {
            **config,
            "rope_parameters": {"rope_type": rope_type, "rope_theta": config.pop("rope_theta"), **parameters},
        }
    if rope_type == "default":
        return config
    return {
        **config,
        "rope_scaling": {"type" if layout == "v4 type" else "rope_type": rope_type, **parameters},
    }


def agree(rotary_module, spec, config, length, rtol=2e-6):
    """Our table for a length, and that of unmodified transformers after a call of it."""
    import torch

    freqs = rope.frequencies(spec, length)
    positions = [0, 1, 37, length - 1]
    module = rotary_module(config)
    cos, sin = module(torch.zeros(1), torch.tensor([positions]))
    np.testing.assert_allclose(freqs.inv_freq64, module.inv_freq, rtol=rtol, atol=1e-25)
    assert abs(module.attention_scaling - float(freqs.attention_factor)) <= 1e-6
    for ours, theirs in zip(rope.cos_sin(freqs, np.array(positions)), (cos, sin), strict=True):
        theirs = theirs[0, :3, : len(freqs.wavelength)]  # the last position is float32's own error
        np.testing.assert_allclose(ours[:3], theirs, rtol=0, atol=3e-5)


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_every_rope_type(rotary_module, seed, layout):
    """Generated settings of every rope type, in every layout, against LlamaRotaryEmbedding."""
    for rope_type, parameters, keys in drawn(seed):
        config = laid_out(layout, rope_type, parameters, keys)
        spec = rope.from_hf(config)
        longest = keys["max_position_embeddings"]
        agree(rotary_module, spec, config, 4 * longest if rope_type == "dynamic" else longest)
        if spec.dynamic:
            agree(rotary_module, spec, config, spec.train_length // 2 + 8)


@pytest.mark.parametrize("seed", range(20))
def test_layouts_say_the_same(seed):
    """Version 4, version 5, and both at once; a contradiction between them is refused."""
    for setting in drawn(seed):
        new = laid_out("v5", *setting)
        specs = [rope.from_hf(laid_out(layout, *setting)) for layout in LAYOUTS]
        both = {**new, **laid_out("v4 type", *setting)}
        assert rope.from_hf(both) == specs[0] == specs[1] == specs[2]
        if both.get("rope_scaling", {}).get("factor"):
            both["rope_scaling"]["factor"] += 0.5
            with pytest.raises(ValueError, match="rope_scaling and rope_parameters contradict each other"):
                rope.from_hf(both)


@pytest.mark.parity
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("inside", [True, False])
def test_partial_rotation(llama_shape, rope_type, inside):
    """partial_rotary_factor, in the RoPE dictionary or at the top, against the function of each type."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    options = {"factor": 4.0}
    if rope_type in ("yarn", "llama3", "longrope"):
        options["original_max_position_embeddings"] = 512
    if rope_type == "llama3":
        options |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope_type == "longrope":
        options |= dict(zip(("short_factor", "long_factor"), lists(16), strict=True))
    partial = {"partial_rotary_factor": 0.25}
    rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, **options, **(partial if inside else {})}
    config = {"head_dim": 128, "max_position_embeddings": 2048, "rope_parameters": rope_parameters}
    config |= {} if inside else partial
    theirs, _ = ROPE_INIT_FUNCTIONS[rope_type](
        LlamaConfig(**{**llama_shape, **json.loads(json.dumps(config))}), seq_len=8192
    )
    spec = rope.from_hf(config)
    assert spec.rotary_dim == 32
    np.testing.assert_allclose(rope.frequencies(spec, 8192).inv_freq64, theirs, rtol=2e-6)


@pytest.mark.parity
def test_partial_rotation_of_plain_rope(llama_shape):
    """Phi's class honours the factor (LLaMA's rotates whole heads)."""
    from transformers import PhiConfig
    from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

    config = {**llama_shape, "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    theirs = PhiRotaryEmbedding(PhiConfig(**config)).inv_freq
    np.testing.assert_allclose(rope.frequencies(rope.from_hf(config)).inv_freq64, theirs, rtol=2e-6)


GEMMA = {
    "v4": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "v5": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("layout", GEMMA)
def test_a_rope_per_layer_type(llama_shape, layout):
    from transformers import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    config = {**llama_shape, "head_dim": 64, "num_hidden_layers": 6, **GEMMA[layout]}
    theirs = Gemma3RotaryEmbedding(Gemma3TextConfig(**json.loads(json.dumps(config))))
    for layer_type in ("full_attention", "sliding_attention"):
        freqs = rope.frequencies(rope.from_hf(config, layer_type))
        np.testing.assert_allclose(freqs.inv_freq64, getattr(theirs, f"{layer_type}_inv_freq"), rtol=2e-6)
    with pytest.raises(
        ValueError, match="one RoPE per layer type: pass layer_type=, one of full_attention, sliding"
    ):
        rope.from_hf(config)
    with pytest.raises(
        ValueError, match="unknown layer_type 'global'; this config has full_attention, sliding"
    ):
        rope.from_hf(config, layer_type="global")


def test_layers_without_rope_and_truncate_above_them():
    layers = {
        "full_attention": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096},
        "linear_attention": None,
        "truncate": False,
    }
    config = {**LLAMA, "rope_parameters": layers}
    assert rope.from_hf(config, "full_attention").truncate is False
    layers["full_attention"]["truncate"] = True
    with pytest.raises(ValueError, match="transformers ignores truncate inside 'full_attention'"):
        rope.from_hf(config, "full_attention")


def test_the_release_writes():
    """`ntk`, `dynamic-yarn`, `resonance_yarn` and the resonance_rope flag, as its fine-tuning saves them."""

    def read(rope_type, flag=None, **more):
        scaling = {"type": rope_type, "factor": 8.0, "original_max_position_embeddings": 4096, **more}
        flags = {} if flag is None else {"resonance_rope": flag}
        return rope.from_hf({**LLAMA, **flags, "rope_theta": 10_000.0, "rope_scaling": scaling})

    scaled = rope.RopeSpec(method="yarn", scale=8, train_length=4096)
    assert read("yarn") == read("yarn", flag=False) == read("yarn", finetuned=True) == scaled
    resonant = rope.RopeSpec(method="yarn", scale=8, train_length=4096, resonance=True)
    assert read("yarn", flag=True) == read("resonance_yarn") == read("resonance_yarn", flag=False) == resonant
    assert read("ntk") == rope.RopeSpec(method="ntk", scale=8, train_length=4096)
    assert read("linear", flag=True) == rope.RopeSpec(
        method="linear", scale=8, train_length=4096, resonance=True
    )
    for name in ("dynamic-yarn", "dynamic_yarn"):
        assert read(name) == rope.RopeSpec(method="dynamic_yarn", train_length=4096)
    # whatever the original length, both transformers and the release take max_position_embeddings for L
    assert read("dynamic") == rope.RopeSpec(method="dynamic_ntk", train_length=32_768, dynamic_factor=8)
    with pytest.raises(ValueError, match="dynamic-yarn with finetuned=true starts at s = max / original"):
        read("dynamic-yarn", finetuned=True)
    plain = {**LLAMA, "rope_scaling": None, "resonance_rope": True}
    assert rope.from_hf(plain) == rope.RopeSpec(train_length=32_768, resonance=True)


def test_what_configs_leave_out():
    assert rope.from_hf({"hidden_size": 256, "num_attention_heads": 4}) == rope.RopeSpec(head_dim=64)
    assert rope.from_hf({**LLAMA, "head_dim": None}) == rope.RopeSpec(train_length=32_768)
    assert rope.from_hf({**LLAMA, "head_dim": 256}).head_dim == 256
    linear = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert rope.from_hf(linear).train_length is None  # 32,768 may be before or after scaling
    stated = {**linear, "original_max_position_embeddings": 8192}
    assert rope.from_hf(stated).train_length == 8192
    top = {**LLAMA, "original_max_position_embeddings": 2048}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert rope.from_hf({**top, "rope_scaling": yarn}).train_length == 2048  # the top level wins


@pytest.mark.parametrize(
    ("stated", "key", "without"),
    [
        (
            {"rope_type": "yarn", "factor": 8.0, "beta_fst": 32},
            "beta_fst",
            {"rope_type": "yarn", "factor": 8.0},
        ),
        (
            {"type": "linear", "factor": 2.0, "low_freq_factor": 1},
            "low_freq_factor",
            {"type": "linear", "factor": 2.0},
        ),
        ({"factor": 8.0}, "factor", {"type": "default"}),
    ],
)
def test_a_key_that_transformers_passes_over_is_told_and_passed_over(stated, key, without):
    with pytest.warns(UserWarning, match=f"does not know the key '{key}', which is passed over"):
        assert rope.from_hf({**LLAMA, "rope_scaling": stated}) == rope.from_hf(
            {**LLAMA, "rope_scaling": without}
        )


YARN = {"rope_type": "yarn", "factor": 8.0}
BAD = [
    ({"rope_theta": 1e4, "rope_parameters": {**YARN, "rope_theta": 5e5}}, "rope_theta is 10000.0 at the top"),
    (
        {"rope_scaling": {"type": "yarm"}},
        "unknown rope type 'yarm'; known are default, linear, dynamic, yarn",
    ),
    (
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}},
        "the key 'mrope_section' gives a token several positions",
    ),
    (
        {"rope_scalling": {"type": "linear"}},
        "unknown RoPE key 'rope_scalling' in the config; known are rope_theta",
    ),
    ({"rotary_pct": 0.25}, "unknown RoPE key 'rotary_pct'"),
    ({"qk_rope_head_dim": 64}, "unknown RoPE key 'qk_rope_head_dim'"),
    ({"rope_dims": [1, 0]}, "unknown RoPE key 'rope_dims'"),
    ({"rope_scaling": "linear"}, r"must be dictionaries, got \['linear'\]"),
    (
        {"rope_scaling": {"type": "linear"}},
        "rope type 'linear' needs factor, and the config does not state it",
    ),
    ({"rope_scaling": {"type": "llama3"}}, "rope type 'llama3' needs factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "scale must be at least 1"),
    ({"rope_scaling": {"type": "linear", "factor": "8"}}, "factor must be a number, got '8'"),
    ({"rope_scaling": {"type": "longrope", "factor": [8]}}, r"factor must be a number, got \[8\]"),
    ({"max_position_embeddings": "long"}, "max_position_embeddings must be a number, got 'long'"),
    ({"rope_scaling": {"rope_type": ["yarn"]}}, r"unknown rope type \"\['yarn'\]\""),
    ({"hidden_size": "4096"}, "got hidden_size=4096, num_attention_heads=32"),
    (
        {"rope_scaling": {"type": "longrope", "factor": 8.0}},
        "longrope needs short_factor: 64 positive numbers",
    ),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": None},
        "'dynamic' needs max_position",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": None},
        "'yarn' needs original_max_position",
    ),
    ({"resonance_rope": "yes"}, "resonance_rope must be true or false, got 'yes'"),
    (
        {"hidden_size": None},
        "must state head_dim, or a hidden_size that num_attention_heads divides; got hidden_size=None",
    ),
    ({"num_attention_heads": 31}, "got hidden_size=4096, num_attention_heads=31"),
    ({"rope_parameters": {"full_attention": {}}, "rope_scaling": YARN}, "keep rope_parameters alone"),
    (
        {"rope_parameters": {"full_attention": {}, "rope_theta": 1e4}},
        "expected a dictionary for layer type 'rope_theta'",
    ),
]


@pytest.mark.parametrize(("keys", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_bad_configs(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        rope.from_hf({**LLAMA, **keys})


def test_configs_are_dictionaries_and_stay_as_they_are():
    with pytest.raises(ValueError, match="expected a config as a dictionary, got str"):
        rope.from_hf("config.json")
    with pytest.raises(ValueError, match="one RoPE for all layers: drop layer_type='full_attention'"):
        rope.from_hf(LLAMA, layer_type="full_attention")
    config = {**LLAMA, "properties": 1, "rope_parameters": dict(YARN, rope_theta=5e5)}
    before = json.dumps(config)
    rope.from_hf(config)
    assert json.dumps(config) == before


def nameable(oracle, head_dim=128, base=1e4):
    """A spec of each method that transformers has a name for."""
    specs = []
    for options in oracle.one_of_each(head_dim, base, train_length=512):
        if options["method"] not in ("ntk", "dynamic_yarn"):
            specs.append(rope.RopeSpec(**options))
    more = {"method": "yarn", "head_dim": head_dim, "train_length": 512}
    specs.append(rope.RopeSpec(scale=4, beta_fast=16, beta_slow=2, truncate=False, **more))
    specs.append(rope.RopeSpec(scale=4, mscale=0.7, mscale_all_dim=1.1, **more))
    specs.append(rope.RopeSpec(scale=4, attention_factor=1.2, **more))
    specs.append(rope.RopeSpec(scale=1, **more))
    return specs


def test_round_trips(oracle):
    """from_hf(to_hf(spec)) is the spec, through JSON and by either layout alone."""
    for spec in [*nameable(oracle), *nameable(oracle, 80, 5e5)]:
        config = json.loads(json.dumps(rope.to_hf(spec)))
        expected = spec
        if spec.method == "ntk_by_parts":
            expected = dataclasses.replace(spec, method="yarn", attention_factor=1.0)
        old = {key: value for key, value in config.items() if key != "rope_parameters"}
        new = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
        assert rope.from_hf(config) == rope.from_hf(new) == expected
        assert rope.from_hf(old) == expected
    partial = rope.RopeSpec(method="linear", scale=2, partial_rotary_factor=0.25)
    assert rope.from_hf(rope.to_hf(partial)) == partial


@pytest.mark.parity
def test_transformers_reads_what_we_write(rotary_module, llama_shape, oracle, tmp_path):
    """In memory, and from a config.json that transformers itself wrote again."""
    from transformers import LlamaConfig

    for spec in nameable(oracle):
        config = rope.to_hf(spec)
        length = 4096 if spec.dynamic else 600
        agree(rotary_module, spec, config, length)
        LlamaConfig(**{**llama_shape, **json.loads(json.dumps(config))}).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert rope.same(rope.frequencies(rope.from_hf(written), length), rope.frequencies(spec, length))
        agree(rotary_module, spec, written, length)
