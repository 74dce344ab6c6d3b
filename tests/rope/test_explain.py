"""What explain() tells a person: the figures are the library's, and each known difference is named."""

import pytest

from resonance_jax import rope

RELEASE = {"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 32_768}


def release(rope_type, resonance=False, **more):
    scaling = {"type": rope_type, "factor": 8.0, "original_max_position_embeddings": 4096, **more}
    return {**RELEASE, "resonance_rope": resonance, "rope_scaling": scaling}


def row(text, name):
    """One row of an explanation, its lines joined."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}"))
    rest = [line for line in lines[start + 1 :]]
    more = next((i for i, line in enumerate(rest) if not line.startswith(" " * 16)), len(rest))
    return " ".join(line.strip() for line in lines[start : start + 1 + more])


def test_figures():
    text = rope.explain(rope.RopeSpec(method="yarn", scale=8, train_length=4096, resonance=True))
    assert text.startswith("Resonance YaRN\n")
    assert "trained at 4,096 positions, scaled 8x to 32,768" in row(text, "lengths")
    assert "128 of 128 dims of a head: 64 pairs, base 10,000" in row(text, "rotary size")
    assert "39 of 64 pairs turn within 4,096 positions" in row(text, "critical dim")
    assert "Theorem 1" in row(text, "critical dim")
    assert "6 to 435,281 positions a turn" in row(text, "wavelengths")
    assert "cos and sin times 1.20794, so attention scores times 1.45913" in row(text, "attention")
    assert max(map(len, text.splitlines())) <= 100


def test_every_method_is_explained(oracle):
    for options in oracle.one_of_each(64, 1e4):
        for resonance in (False, True):
            text = rope.explain(rope.RopeSpec(resonance=resonance, **options), length=32_768)
            assert len(text.splitlines()) >= 10 and "None" not in text
            assert ("no name for Resonance" in " ".join(text.split())) == resonance


def test_dynamic_methods_by_length():
    spec = rope.RopeSpec(method="dynamic_yarn", train_length=4096)
    assert "what follows is for 4,096" in row(rope.explain(spec), "lengths")
    assert row(rope.explain(spec), "attention").endswith("cos and sin as they are.")
    assert "times 1.20794" in row(rope.explain(spec, length=32_768), "attention")


@pytest.mark.parametrize(
    ("config", "name", "sentence"),
    [
        (
            release("yarn"),
            "transformers",
            "The same. Version 4.46 took max_position_embeddings, 32,768, for L.",
        ),
        (
            release("yarn", mscale=1.0),
            "transformers",
            "mscale and mscale_all_dim have no effect without each other",
        ),
        (release("yarn", True), "transformers", "Ignores resonance_rope: YaRN as stated, nothing rounded."),
        (release("resonance_yarn"), "transformers", "Does not know the type 'resonance_yarn': KeyError."),
        (release("dynamic-yarn"), "transformers", "Does not know the type 'dynamic-yarn': KeyError."),
        (
            release("dynamic"),
            "transformers",
            "L is max_position_embeddings, 32,768: nothing is scaled up to there",
        ),
        (release("dynamic", True), "transformers", "table grows with the longest call"),
        (release("yarn"), "paper's code", "PosGen takes the longest length + 1 for L"),
        (
            release("yarn", True),
            "paper's code",
            "Computes the same in LLaMA (`resonance_yarn`, or `yarn` with",
        ),
        (release("yarn", factor=8), "paper's code", "It refuses factor=8: it wants a float above 1"),
        (
            release("yarn", beta_fast=16),
            "paper's code",
            "reads factor and the original length alone, not beta_fast",
        ),
        (release("linear", True), "paper's code", "Drops the flag without a word, having no class for it"),
        (release("ntk"), "paper's code", "a config.json that states it is refused"),
        (release("ntk", True), "paper's code", "an AttributeError is swallowed"),
        (release("dynamic"), "paper's code", "max_position_embeddings to s L: nothing is scaled up to there"),
        (release("dynamic", True), "paper's code", "plain dynamic NTK"),
        (release("dynamic-yarn"), "paper's code", "Takes s = n / max_position_embeddings instead of n / L"),
        (release("dynamic-yarn", True), "paper's code", "Crashes"),
        ({**RELEASE, "resonance_rope": True}, "paper's code", "cos is off by up to 0.044"),
        ({**RELEASE, "partial_rotary_factor": 0.5}, "transformers", "LLaMA and Mistral rotate whole heads"),
    ],
)
def test_differences_are_named(config, name, sentence):
    assert sentence in row(rope.explain(config), name)


def test_float32_error_of_transformers():
    """The figure is what float32 products really lose: 2e-3 at 32,768 for LLaMA-2's YaRN, less at 4,096."""
    text = row(rope.explain(release("yarn")), "transformers")
    assert "off by 1.9e-03 in cos near position 32,768" in text
    assert "off by 2.3e-04 in cos near position 4,096" in row(
        rope.explain(rope.RopeSpec(train_length=4096)), "transformers"
    )


def test_a_rope_per_layer_type():
    config = {
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        },
    }
    text = rope.explain(config)
    assert "sliding_attention: RoPE\n" in text and "\n\nfull_attention: Proportional\n" in text
    assert "128 pairs (96 never turn), base 1,000,000" in text
    assert rope.explain(config, layer_type="sliding_attention") == text.split("\n\n")[0]
    with pytest.raises(ValueError, match="unknown layer_type 'global'"):
        rope.explain(config, layer_type="global")


def test_bad_configs_are_refused_as_by_from_hf():
    with pytest.raises(ValueError, match="unknown rope type 'yarm'"):
        rope.explain({**RELEASE, "rope_scaling": {"type": "yarm"}})
    with pytest.raises(ValueError, match="expected a config as a dictionary, got list"):
        rope.explain([])


def test_an_export_holds_its_whole_wavelengths():
    spec = rope.RopeSpec(method="yarn", head_dim=16, scale=8.0, train_length=32, resonance=True)
    stated = rope.to_longrope(rope.frequencies(spec), base=spec.base, train_length=32, length=256)
    text = rope.explain({"head_dim": 16, **stated})
    assert "the factors hold the whole wavelengths already" in " ".join(text.split())
    assert "nothing rounded" not in text


def test_layer_specs_are_explained_type_by_type():
    specs = rope.LayerSpecs({rope.SLIDING: rope.RopeSpec(), rope.FULL: rope.RopeSpec(base=1e6)})
    text = rope.explain(specs)
    assert text == "\n\n".join(f"{name}: {rope.explain(spec)}" for name, spec in specs.items())
    assert rope.explain(specs, layer_type=rope.FULL) == text.split("\n\n")[1]
    with pytest.raises(ValueError, match="unknown layer_type 'global'; there are sliding_attention, full"):
        rope.explain(specs, layer_type="global")


def test_layers_without_rope_are_named():
    """SmolLM3 lists a 1 where a layer has RoPE."""
    config = {"head_dim": 64, "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0], "no_rope_layer_interval": 4}
    assert rope.explain(config).endswith("\n\nLayers without RoPE, counted from 0: 3, 7.")
    assert "without RoPE" not in rope.explain({**config, "no_rope_layers": [1, 1]})
