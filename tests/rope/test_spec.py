"""What the user says, how encodings are told apart, and what is stored of them."""

import copy
import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_jax import rope

YARN = rope.RopeSpec(method="yarn", head_dim=64, scale=8.0, train_length=512, resonance=True)


@st.composite
def specs(draw):
    """Any RopeSpec that has a table at length 10,000."""
    method = draw(st.sampled_from(list(rope.METHODS)))
    half = draw(st.integers(2, 32))
    options = {
        "method": method,
        "head_dim": 2 * half,
        "base": draw(st.floats(2.0, 1e7)),
        "train_length": draw(st.integers(2, 8192)),
        "resonance": draw(st.booleans()),
    }
    if not method.startswith("dynamic") and method != "default":
        options["scale"] = draw(st.floats(1.0, 64.0))
    if method in ("yarn", "dynamic_yarn", "ntk_by_parts"):
        options["beta_slow"] = draw(st.floats(0.5, 4))
        options["beta_fast"] = options["beta_slow"] + draw(st.floats(0.1, 64))
        options["truncate"] = draw(st.booleans())
        options["ramp"] = draw(st.sampled_from(["dimension", "rotations"]))
        options["extrapolation_factor"] = draw(st.floats(0, 1))
    if method == "longrope":
        factors = st.lists(st.floats(1.0, 64.0), min_size=half, max_size=half)
        options |= {"short_factor": draw(factors), "long_factor": draw(factors)}
    return rope.RopeSpec(**options)


@settings(max_examples=150, deadline=None)
@given(specs())
def test_records_round_trip(spec):
    """Spec and table survive JSON: the spec equal, the table the same, its frequencies to the last digit."""
    freqs = rope.frequencies(spec, 10_000)
    record = json.loads(json.dumps(rope.to_record(freqs, spec)))
    assert rope.RopeSpec(**record["spec"]) == spec
    restored = rope.from_record(record)
    assert rope.same(freqs, restored) and rope.same(restored, freqs)
    assert rope.fingerprint(restored) == rope.fingerprint(freqs) == record["fingerprint"]
    assert restored.wavelength.tolist() == freqs.wavelength.tolist()
    for leaf, other in zip(jax.tree.leaves(freqs), jax.tree.leaves(restored), strict=True):
        assert leaf.shape == other.shape and leaf.dtype == other.dtype


@settings(max_examples=100, deadline=None)
@given(specs())
def test_resonance_is_a_transform(spec):
    """The flag on the spec is the function on the table, whatever the method."""
    plain = rope.frequencies(dataclasses.replace(spec, resonance=False), 10_000)
    whole = rope.frequencies(dataclasses.replace(spec, resonance=True), 10_000)
    assert rope.same(rope.resonance(plain), whole)
    assert rope.same(rope.resonance(whole), whole)
    wavelength = rope.wavelengths(plain)
    assert np.abs(wavelength - rope.wavelengths(whole))[wavelength < 2**31].max(initial=0) <= 0.5 + 1e-6


def test_restored_tables_compute_the_same():
    freqs = rope.frequencies(YARN)
    restored = rope.from_record(json.loads(json.dumps(rope.to_record(freqs))))
    positions = np.arange(4000, 4100)
    program = jax.jit(rope.cos_sin)
    for a, b in zip(program(freqs, positions), program(restored, positions), strict=True):
        np.testing.assert_array_equal(a, b)


def test_same_forgives_an_ulp_and_nothing_more():
    plain = rope.frequencies(dataclasses.replace(YARN, resonance=False))
    table, factor = plain.inv_freq64, float(plain.attention_factor)
    assert rope.same(plain, rope.from_inv_freq(np.nextafter(table, 1), factor))
    assert rope.same(plain, rope.from_inv_freq(table * (1 + 5e-10), factor))
    assert not rope.same(plain, rope.from_inv_freq(table * (1 + 2e-9), factor))
    assert rope.same(plain, rope.from_inv_freq(table, factor * (1 + 5e-8)))
    assert not rope.same(plain, rope.from_inv_freq(table, factor * (1 + 1e-6)))
    assert not rope.same(plain, rope.from_inv_freq(table[:-1], factor))
    one_more = rope.frequencies(YARN).wavelength.astype(np.int64)
    one_more[-1] += 1
    assert not rope.same(rope.frequencies(YARN), rope.from_inv_freq(table, factor, one_more))


def test_whole_wavelengths_are_part_of_the_encoding():
    """The same frequencies without the modulo are another encoding: they are not periodic to the bit."""
    freqs = rope.frequencies(YARN)
    without = rope.from_inv_freq(freqs.inv_freq64, float(freqs.attention_factor))
    assert not rope.same(freqs, without)


def test_every_method_is_told_apart(oracle):
    specs = [rope.RopeSpec(**options) for options in oracle.one_of_each(64, 1e4)]
    specs += [dataclasses.replace(spec, resonance=True) for spec in specs]
    tables = [rope.frequencies(spec, 32_768) for spec in specs]
    assert len({rope.fingerprint(freqs) for freqs in tables}) == len(tables)
    for i, a in enumerate(tables):
        assert [rope.same(a, b) for b in tables] == [i == j for j in range(len(tables))]


def test_fingerprint_is_stable():
    """A label in file names must not change between versions; nine digits hide an ulp."""
    freqs = rope.frequencies(rope.RopeSpec())
    assert rope.fingerprint(freqs) == "08ede18b67"
    nudged = rope.from_inv_freq(np.nextafter(freqs.inv_freq64, 0))
    assert rope.fingerprint(nudged) == rope.fingerprint(freqs)


def test_specs_are_values():
    """Frozen, hashable, and plain Python inside, whatever numbers they were made of."""
    spec = rope.RopeSpec(
        method="longrope",
        head_dim=np.int64(4),
        base=np.float32(1e4),
        scale=np.int32(2),
        train_length=4096.0,
        short_factor=np.ones(2),
        long_factor=[1, 2],
        resonance=np.bool_(True),
    )
    assert spec == eval(repr(spec), {"RopeSpec": rope.RopeSpec}) == copy.deepcopy(spec)
    assert len({spec, copy.deepcopy(spec), YARN}) == 2
    assert rope.RopeSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == copy.copy(spec) == spec
    assert type(spec.train_length) is int and type(spec.head_dim) is int and spec.resonance is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.scale = 3


def test_stated():
    assert YARN.stated() == {
        "method": "yarn",
        "head_dim": 64,
        "base": 10_000.0,
        "scale": 8.0,
        "train_length": 512,
        "resonance": True,
    }
    assert rope.RopeSpec(**YARN.stated()) == YARN
    assert YARN.title == "Resonance YaRN" and rope.RopeSpec().title == "RoPE"


@pytest.mark.parametrize(("factor", "rotary"), [(1.0, 64), (0.5, 32), (0.25, 16)])
def test_rotary_size(factor, rotary):
    spec = rope.RopeSpec(head_dim=64, partial_rotary_factor=factor)
    assert spec.rotary_dim == rotary and rope.frequencies(spec).step.shape == (rotary // 2, 2)
    spec = dataclasses.replace(spec, method="proportional")
    assert spec.rotary_dim == 64


def test_which_methods_depend_on_the_length(oracle):
    dynamic = {o["method"] for o in oracle.one_of_each(64, 1e4) if rope.RopeSpec(**o).dynamic}
    assert dynamic == {"dynamic_ntk", "dynamic_yarn", "longrope"}
    for options in oracle.one_of_each(64, 1e4):
        spec = rope.RopeSpec(**options)
        assert rope.same(rope.frequencies(spec, 8192), rope.frequencies(spec, 32_768)) != (
            spec.dynamic and spec.method != "longrope"
        )


@pytest.mark.parametrize(
    ("name", "method", "resonance"),
    [
        ("rope", "default", False),
        ("Resonance-RoPE", "default", True),
        ("resonance", "default", True),
        ("yarn", "yarn", False),
        ("resonance-dynamic-ntk", "dynamic_ntk", True),
        ("dynamic_yarn", "dynamic_yarn", False),
        ("ResonanceYaRN", "yarn", True),
        ("Resonance YaRN", "yarn", True),
        ("RESONANCE_YARN", "yarn", True),
        ("resonanceyarn", "yarn", True),
        ("Resonance Dynamic NTK", "dynamic_ntk", True),
        ("DynamicYaRN", "dynamic_yarn", False),
        ("resonance llama 3", "llama3", True),
        ("Resonance-NTK-by-parts", "ntk_by_parts", True),
        ("NONE", "default", False),
    ],
)
def test_encodings_by_name(name, method, resonance):
    settings = {"head_dim": 16, "scale": 4.0, "train_length": 32, "beta_fast": 16.0, "attention_factor": None}
    spec = rope.named(name, **settings)
    assert (spec.method, spec.resonance, spec.head_dim, spec.train_length) == (method, resonance, 16, 32)
    assert spec.scale == (4.0 if rope.METHODS[method].takes_scale else 1.0)


def test_a_name_that_no_encoding_has():
    with pytest.raises(ValueError, match="unknown encoding 'yarm'"):
        rope.named("yarm")
    for name in ("", "-", "resonance-yarm", "resonanceresonance", "yarn-resonance"):
        with pytest.raises(ValueError, match="unknown encoding"):
            rope.named(name)


def test_titles_are_names(oracle):
    """What a table or a plot calls an encoding is a name for it."""
    for options in oracle.one_of_each(16, 1e4):
        for resonance in (False, True):
            spec = rope.RopeSpec(resonance=resonance, **options)
            assert rope.named(spec.title, **options) == spec


def test_a_setting_that_no_method_takes():
    with pytest.raises(ValueError, match="no method takes beta_fst; known are attention_factor, base"):
        rope.named("yarn", beta_fst=16.0, scale=2.0, train_length=32)


def test_records_of_any_age_are_read():
    """A flat record that holds the options of every method at their defaults says the same."""
    everything = {name: o.default for m in rope.METHODS.values() for name, o in m.options.items()}
    flat = {**everything, **YARN.to_dict()}
    assert set(YARN.to_dict()) < set(flat) and rope.RopeSpec(**flat) == YARN
    with pytest.raises(
        ValueError, match=r"'yarn' does not take dynamic_factor=2\.0; it takes attention_factor"
    ):
        rope.RopeSpec(**{**flat, "dynamic_factor": 2})


def test_options_are_attributes_whether_given_or_not():
    spec = dataclasses.replace(YARN, beta_fast=16.0)
    assert (spec.beta_fast, spec.beta_slow, spec.attention_factor) == (16.0, 1.0, None)
    assert spec.options == (("beta_fast", 16.0),)
    assert dataclasses.replace(spec, beta_fast=32.0) == YARN
    assert dataclasses.replace(spec, options=()) == YARN
    assert dataclasses.replace(YARN, method="dynamic_yarn", scale=1.0).options == ()
    with pytest.raises(AttributeError, match="'RopeSpec' object has no attribute 'beta_fst'"):
        _ = spec.beta_fst
