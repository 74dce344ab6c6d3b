"""A method is one record: a new one, with an option of its own, goes everywhere that the others go."""

import copy
import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest

from resonance_jax import evaluate, model, rope
from resonance_jax.report import perplexity_plot
from resonance_jax.report import rope as pictures
from resonance_jax.rope.schema import Method, Option

SCALED = {"head_dim": 16, "scale": 4.0, "train_length": 32}


def leaning(dim, base, *, scale, lean, rounded):
    """Leaning interpolation: theta / s^(2j/R)^lean, so that slow pairs give way first.

    A second paragraph is for readers of the code.
    """
    share = np.arange(dim // 2) / (dim // 2)
    return base ** (-np.arange(0, dim, 2) / dim) / scale ** (share**lean), 1.0 + 0.5 * rounded


def by_hand(lean):
    return [10_000 ** (-j / 8) / 4 ** ((j / 8) ** lean) for j in range(8)]


@pytest.fixture
def method(monkeypatch):
    """The name of the new method, which is gone after the test."""
    record = Method(
        leaning,
        title="Leaning RoPE",
        options={
            "lean": Option(1.0, valid=lambda lean: lean > 0, expected="positive"),
            "rounded": Option(False, "switch"),
        },
        aliases=("tower of pisa",),
    )
    monkeypatch.setitem(rope.METHODS, "leaning", record)
    return "leaning"


@pytest.fixture
def spec(method):
    return rope.RopeSpec(method, lean=2, **SCALED)


def test_it_is_taken_away_again():
    assert "leaning" not in rope.METHODS
    with pytest.raises(ValueError, match="unknown RoPE method 'leaning'"):
        rope.RopeSpec("leaning")
    with pytest.raises(AttributeError, match="no attribute 'lean'"):
        _ = rope.RopeSpec().lean


def test_a_spec_takes_its_options(spec, method):
    assert spec.lean == 2.0 and type(spec.lean) is float and spec.rounded is False
    assert rope.RopeSpec(method, **SCALED).lean == 1.0
    assert spec == rope.RopeSpec(method, **SCALED, options={"lean": 2}) != rope.RopeSpec(method, **SCALED)
    assert dataclasses.replace(spec, lean=3.0).lean == 3.0 and spec.lean == 2.0
    resonant = dataclasses.replace(spec, resonance=True)
    assert (resonant.lean, resonant.title) == (2.0, "Resonance Leaning RoPE")
    assert len({spec, pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec), resonant}) == 2
    assert "lean=2.0" in repr(spec) and eval(repr(spec), {"RopeSpec": rope.RopeSpec}) == spec
    flat = json.loads(json.dumps(rope.to_record(rope.frequencies(spec), spec)))["spec"]
    assert flat["lean"] == 2.0 and flat["rounded"] is False and flat["method"] == method
    assert rope.RopeSpec(**flat) == spec


def test_what_it_does_not_take_is_refused(method):
    with pytest.raises(
        ValueError, match=r"'leaning' does not take beta_fast=2.0; it takes lean, rounded, scale"
    ):
        rope.RopeSpec(method, beta_fast=2, **SCALED)
    with pytest.raises(
        ValueError, match=r"'yarn' does not take lean=3.0; it takes attention_factor, beta_fast"
    ):
        rope.RopeSpec("yarn", lean=3, **SCALED)
    with pytest.raises(ValueError, match=r"'leaning' does not take laen=3; it takes lean, rounded, scale"):
        rope.RopeSpec(method, laen=3, **SCALED)
    with pytest.raises(ValueError, match=r"lean must be positive, got -1\.0"):
        rope.RopeSpec(method, lean=-1, **SCALED)
    with pytest.raises(ValueError, match="rounded must be True or False, got 1"):
        rope.RopeSpec(method, rounded=1, **SCALED)


def test_its_table(spec):
    np.testing.assert_allclose(rope.frequencies(spec).inv_freq64, by_hand(2), rtol=1e-12)
    whole = rope.wavelengths(rope.frequencies(dataclasses.replace(spec, resonance=True)))
    np.testing.assert_array_equal(whole, np.rint(2 * np.pi / np.array(by_hand(2))))
    assert float(rope.frequencies(dataclasses.replace(spec, rounded=True)).attention_factor) == 1.5


@pytest.mark.parametrize("name", ["leaning", "Leaning RoPE", "LEANING_ROPE", "tower-of-Pisa"])
def test_its_names(spec, name):
    settings = {**SCALED, "lean": 2, "beta_fast": 16.0}  # one set of them for every encoding
    assert rope.named(name, **settings) == spec
    assert rope.named(f"Resonance{name}", **settings) == dataclasses.replace(spec, resonance=True)
    assert rope.restate(rope.named("yarn", **SCALED), name, scale=4.0) == dataclasses.replace(spec, lean=1)
    assert rope.restate(spec, name, scale=8.0) == dataclasses.replace(spec, scale=8.0)


def test_it_is_explained(spec):
    text = " ".join(rope.explain(spec).split())
    assert text.startswith("Leaning RoPE method Leaning interpolation: theta / s^(2j/R)^lean, so that slow")
    assert "scale=4.0, train_length=32, lean=2.0." in text
    assert "transformers Has no name for static Leaning RoPE" in text
    assert "paper's code Does not know this type: ValueError." in text


@pytest.mark.parametrize("resonance", [False, True])
def test_it_is_exported_as_longrope(spec, resonance):
    spec = dataclasses.replace(spec, resonance=resonance, rounded=True)
    with pytest.raises(ValueError, match="transformers has no name for"):
        rope.to_hf(spec)
    config = json.loads(json.dumps(rope.to_hf(spec, length=128)))
    assert config["rope_parameters"]["rope_type"] == "longrope" and config["head_dim"] == 16
    assert config["max_position_embeddings"] == 128
    back = rope.from_hf(config)
    assert back.method == "longrope" and rope.same(rope.frequencies(back), rope.frequencies(spec))


def test_it_is_scored_and_drawn(spec, tmp_path):
    config = model.PRESETS["tiny"].replace(
        vocab_size=32, d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=48, n_layers=1
    )
    lm = model.Decoder(config, jax.random.key(0))
    lm = lm.replace_params(jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, lm.params))
    documents = [np.random.default_rng(n).integers(0, 32, 64) for n in range(2)]
    specs = [spec, dataclasses.replace(spec, resonance=True), rope.named("yarn", **SCALED)]
    results = {each.title: evaluate.sweep(lm, documents, each, (32, 64)) for each in specs}
    assert len({by_length[64].token_mean for by_length in results.values()}) == 3
    perplexity_plot(results, tmp_path / "perplexity.png", train_length=32)
    tables = {each.title: rope.frequencies(each) for each in specs}
    rows = pictures.pair_rows(tables, 32, 64)
    pictures.wavelength_plot(rows, tmp_path / "wavelengths.png", 32, 64)
    for picture in ("perplexity", "wavelengths"):
        assert (tmp_path / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
