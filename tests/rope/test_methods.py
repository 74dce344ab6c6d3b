"""Every rule against a float64 oracle written from the formulas, its options, and its refusals."""

import dataclasses

import numpy as np
import pytest

from resonance_jax import rope

LENGTHS = {"below": 3000, "at": 4096, "above": 32_768}


def check(oracle, spec, length=None):
    freqs = rope.frequencies(spec, length)
    theta, attention = oracle.rule(spec, length)
    np.testing.assert_allclose(freqs.inv_freq64, theta, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(freqs.inv_freq, theta, rtol=3e-7, atol=1e-18)
    assert freqs.step.shape == (spec.rotary_dim // 2, 2) and freqs.step.dtype == np.uint32
    assert not freqs.wavelength.any() and freqs.wavelength.dtype == np.int32
    assert float(freqs.attention_factor) == np.float32(attention)


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("rotary", [6, 64, 80, 128, 256])
@pytest.mark.parametrize("base", [1e3, 1e4, 5e5, 1e7])
def test_every_rule(oracle, rotary, base, length):
    for settings in oracle.one_of_each(rotary, base):
        check(oracle, rope.RopeSpec(**settings), length)


def test_every_rule_is_tried(oracle):
    assert [s["method"] for s in oracle.one_of_each(8, 1e4)] == list(rope.METHODS)


LLAMA2 = {"head_dim": 128, "base": 10_000.0, "train_length": 4096}
OPTIONS = [
    {"method": "yarn", "scale": 8, "beta_fast": 128, "beta_slow": 2},
    {"method": "yarn", "scale": 8, "truncate": False},
    {"method": "yarn", "scale": 8, "ramp": "rotations"},
    {"method": "yarn", "scale": 8, "extrapolation_factor": 0.25},
    {"method": "yarn", "scale": 8, "attention_factor": 1.3},
    {"method": "yarn", "scale": 8, "mscale": 0.707, "mscale_all_dim": 1.0},
    {"method": "yarn", "scale": 8, "mscale": 0.707, "mscale_all_dim": 1.0, "attention_factor": 1.1},
    {"method": "yarn", "scale": 1},
    {"method": "yarn", "scale": 4, "train_length": 5},
    {"method": "ntk_by_parts", "scale": 8, "beta_fast": 16, "extrapolation_factor": 0.5},
    {"method": "ntk_by_parts", "scale": 8, "ramp": "rotations", "beta_slow": 2},
    {"method": "dynamic_yarn", "beta_fast": 64, "mscale": 1.5, "mscale_all_dim": 0.5},
    {"method": "dynamic_ntk", "dynamic_factor": 8.0},
    {"method": "dynamic_ntk", "dynamic_factor": 0.5},
    {"method": "llama3", "scale": 32, "low_freq_factor": 2, "high_freq_factor": 16, "base": 5e5},
    {"method": "proportional", "partial_rotary_factor": 0.25},
    {"method": "proportional", "scale": 8},
    {"method": "default", "partial_rotary_factor": 0.25},
    {"method": "yarn", "scale": 8, "partial_rotary_factor": 0.5},
    {"method": "linear", "scale": 3.7, "head_dim": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()))
def test_options(oracle, options):
    check(oracle, rope.RopeSpec(**{**LLAMA2, **options}), 16_384)


def test_options_matter():
    """Each option changes the table or the attention factor: none is silently dropped."""
    seen = set()
    for options in OPTIONS:
        freqs = rope.frequencies(rope.RopeSpec(**{**LLAMA2, **options}), 16_384)
        seen.add((freqs.inv_freq64.tobytes(), float(freqs.attention_factor)))
    assert len(seen) == len(OPTIONS)


def test_longrope_attention_and_switch(oracle):
    lists = {"short_factor": oracle.stretched(128, 1.2), "long_factor": oracle.stretched(128, 15)}
    spec = rope.RopeSpec(method="longrope", scale=8, **LLAMA2, **lists)
    for length in (1, 4096, 4097):
        check(oracle, spec, length)
    assert not rope.same(rope.frequencies(spec, 4096), rope.frequencies(spec, 4097))
    check(oracle, dataclasses.replace(spec, attention_factor=1.05), 4096)
    check(oracle, dataclasses.replace(spec, scale=1), 4096)
    static = dataclasses.replace(spec, short_factor=spec.long_factor)
    check(oracle, static)  # one list: no length is needed


def test_known_dynamic_bases():
    """Dynamic NTK's base for LLaMA-2, as worked out by hand for five (factor, length) pairs."""
    for factor, length, base in [
        (1, 8192, 20_221),
        (2, 8192, 30_528),
        (1, 32_768, 82_685),
        (8, 32_768, 607_779),
        (4, 16_384, 135_402),
    ]:
        spec = rope.RopeSpec(method="dynamic_ntk", dynamic_factor=factor, **LLAMA2)
        plain = rope.RopeSpec(method="default", head_dim=128, base=base)
        np.testing.assert_allclose(
            rope.frequencies(spec, length).inv_freq64, rope.frequencies(plain).inv_freq64, rtol=5e-5
        )


def test_dynamic_methods_forget():
    """A short length after a long one gives the short table: nothing is remembered."""
    for method in ("dynamic_ntk", "dynamic_yarn"):
        spec = rope.RopeSpec(method=method, **LLAMA2)
        before = rope.frequencies(spec, 2048)
        rope.frequencies(spec, 65_536)
        assert rope.same(before, rope.frequencies(spec, 2048))
        assert rope.same(before, rope.frequencies(rope.RopeSpec(head_dim=128)))


BAD = [
    ({"method": "yarm"}, "unknown RoPE method 'yarm'; expected one of default, linear, ntk"),
    ({"method": 3}, "method must be a name, got 3"),
    ({"method": "linear", "beta_fast": 16}, "'linear' does not take beta_fast=16.0; it takes scale"),
    ({"method": "default", "scale": 2}, "'default' does not take scale=2.0; it takes no options"),
    ({"method": "dynamic_ntk", "scale": 2, "train_length": 64}, "derives its scale from the length"),
    ({"method": "yarn", "dynamic_factor": 2, "train_length": 64}, "does not take dynamic_factor=2"),
    ({"method": "yarn", "scale": 8}, "'yarn' needs train_length, the length that the model was trained at"),
    ({"method": "linear", "scale": 0.5}, "scale must be at least 1 .* got 0.5"),
    ({"method": "linear", "scale": float("nan")}, "scale must be finite, got nan"),
    ({"method": "linear", "scale": float("inf")}, "scale must be finite, got inf"),
    ({"method": "linear", "scale": "8"}, "scale must be a number, got '8'"),
    ({"method": "linear", "scale": None}, "scale must be a number, got None"),
    ({"method": "linear", "scale": True}, "scale must be a number, got True"),
    ({"base": 1.0}, "base must be greater than 1, got 1.0"),
    ({"base": float("-inf")}, "base must be finite"),
    ({"head_dim": 127}, "rotary size must be even and at least 2, got 127"),
    ({"head_dim": 0}, "rotary size must be even and at least 2, got 0"),
    ({"head_dim": 64.5}, "head_dim must be a whole number, got 64.5"),
    ({"head_dim": 128, "partial_rotary_factor": 0.7}, r"got 89 \(head_dim=128, partial_rotary_factor=0.7\)"),
    ({"partial_rotary_factor": 0}, r"partial_rotary_factor must be in \(0, 1\], got 0"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be in"),
    ({"resonance": "yes"}, "resonance must be True or False, got 'yes'"),
    ({"train_length": 0}, "train_length must be at least 1 position, got 0"),
    ({"train_length": 12.5}, "train_length must be a whole number, got 12.5"),
    ({"method": "yarn", "train_length": 64, "ramp": "paper"}, "unknown ramp 'paper'"),
    ({"method": "yarn", "train_length": 64, "truncate": 1}, "truncate must be True or False, got 1"),
    ({"method": "yarn", "train_length": 64, "beta_fast": 1}, "beta_fast > beta_slow > 0, got beta_fast=1"),
    ({"method": "yarn", "train_length": 64, "beta_slow": 0}, "expected beta_fast > beta_slow > 0"),
    ({"method": "yarn", "train_length": 64, "extrapolation_factor": 2}, "extrapolation_factor must be in"),
    ({"method": "yarn", "train_length": 64, "attention_factor": 0}, "attention_factor must be positive"),
    ({"method": "yarn", "train_length": 64, "mscale": 1}, "mscale and mscale_all_dim go together"),
    (
        {"method": "yarn", "train_length": 64, "mscale": 1, "mscale_all_dim": 0},
        "mscale and mscale_all_dim must be positive, got 1.0 and 0.0",
    ),
    ({"method": "llama3", "train_length": 64, "low_freq_factor": 4}, "high_freq_factor > low_freq_factor"),
    ({"method": "dynamic_ntk", "train_length": 64, "dynamic_factor": 0}, "dynamic_factor must be positive"),
    ({"method": "longrope", "train_length": 64}, "longrope needs short_factor: 64 positive numbers"),
    (
        {"method": "longrope", "train_length": 64, "head_dim": 4, "short_factor": [1, 1], "long_factor": [1]},
        "longrope needs long_factor: 2 positive numbers, one per pair; got 1",
    ),
    (
        {"method": "longrope", "train_length": 64, "short_factor": 2.0},
        "short_factor must be a list of numbers",
    ),
    (
        {"method": "longrope", "train_length": 64, "short_factor": ["a"]},
        "each of short_factor must be a number",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_specs(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        rope.RopeSpec(**settings)


@pytest.mark.parametrize(
    ("settings", "length", "sentence"),
    [
        ({"method": "dynamic_ntk"}, None, r"depends on the length in use; declare it: frequencies\(spec"),
        ({"method": "dynamic_yarn"}, 0, "length must be at least 1 position, got 0"),
        ({"method": "default"}, 10.5, "length must be a whole number, got 10.5"),
        ({"method": "default"}, "long", "length must be a number, got 'long'"),
        ({"method": "ntk", "head_dim": 2}, None, "NTK rules divide by rotary size - 2"),
        (
            {
                "method": "longrope",
                "scale": 2,
                "train_length": 1,
                "head_dim": 2,
                "short_factor": [1],
                "long_factor": [1],
            },
            None,
            "longrope divides by ln train_length",
        ),
    ],
)
def test_bad_tables(settings, length, sentence):
    spec = rope.RopeSpec(**{**LLAMA2, **settings})
    with pytest.raises(ValueError, match=sentence):
        rope.frequencies(spec, length)


def test_bad_frequencies():
    for table in ([1.0, -1.0], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="frequencies must be finite and not negative"):
            rope.from_inv_freq(table)
    with pytest.raises(ValueError, match="attention factor must be finite and positive, got 0"):
        rope.from_inv_freq([1.0], 0.0)
