"""Our tables against numbers that PyTorch computed: the paper's released classes, and transformers 5.23.

experiments/parity/goldens.py restates each entry of tests/goldens/rope_*.npz as a RopeSpec.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.parity.goldens import LEFT_OUT, reason_left_out, stated, tolerance
from resonance_jax import rope

FILES = ("rope_llama.npz", "rope_separate.npz", "rope_posgen.npz", "rope_hf.npz")
MANIFEST = json.loads((Path(__file__).parents[1] / "goldens" / "manifest.json").read_text())
ENTRIES = [e for e in MANIFEST["entries"] if e["file"] in FILES]


def of_kind(kind):
    return [e for e in ENTRIES if e["kind"] == kind and not reason_left_out(e)]


def each(kind):
    names = [f"{e['file'][5:-4]} {e['id']}" for e in of_kind(kind)]
    return pytest.mark.parametrize("entry", of_kind(kind), ids=names)


def test_every_entry_is_used_or_left_out():
    used = [*of_kind("rope_table"), *of_kind("hf_rope_table"), *of_kind("apply")]
    left_out = [e for e in ENTRIES if reason_left_out(e)]
    assert len(used) == 199 and len(left_out) == 13
    assert {(e["file"], e["id"]) for e in used + left_out} == {(e["file"], e["id"]) for e in ENTRIES}
    assert {e["method"] for e in left_out} | {e["id"] for e in left_out} >= set(LEFT_OUT)


jitted = jax.jit(rope.cos_sin)


def table(freqs, positions):
    """cos and sin at positions, padded so that one compiled program serves every entry of a rotary size."""
    padded = np.zeros(257, np.int32)
    padded[: len(positions)] = positions
    return [np.asarray(x)[: len(positions)] for x in jitted(freqs, padded)]


@each("rope_table")
def test_the_release(goldens, entry):
    arrays = goldens.arrays(entry)
    spec, length = stated(entry)
    freqs = rope.frequencies(spec, length)
    assert abs(freqs.attention_factor - entry["mscale"]) <= 1e-6
    loose = False
    if spec.resonance:
        ours, theirs = rope.wavelengths(freqs), arrays["r_wavelengths"].astype(np.float64)
        # float32 rounds a few of the longest wavelengths the other way: 92816.497 to 92817.
        other = ours != theirs
        assert not other[theirs < 2**15].any()
        assert (np.abs(ours - theirs) <= 1e-6 * theirs + 1).all()
        np.testing.assert_allclose(freqs.inv_freq64[~other], arrays["r_inv_freq"][~other], rtol=2e-6)
        assert not other.any() or spec.method == "dynamic_ntk" or spec.base == 500_000
        loose = other.any() and spec.method == "dynamic_ntk"
    elif entry["method"] not in ("linear", "dynamic_linear"):  # whose classes divide the position instead
        np.testing.assert_allclose(freqs.inv_freq64, arrays["inv_freq"], rtol=2e-6)
    scale = spec.scale if spec.method == "linear" else 1.0
    allowed = np.full((1, 1), 2e-5) if loose else tolerance(arrays["positions"], spec.resonance, scale)
    for ours, name in zip(table(freqs, arrays["positions"]), ("cos", "sin"), strict=True):
        theirs = arrays[name]
        # A table kept in bfloat16 adds its own rounding: half a unit in the last of 8 places.
        rounding = 2.0**-8 * np.abs(theirs) if entry["default_dtype"] == "bfloat16" else 0.0
        assert (np.abs(ours - theirs) <= allowed + rounding).all()


@each("hf_rope_table")
def test_transformers(goldens, entry):
    """Read by from_hf, its lengths of the calls as transformers remembers them."""
    arrays, calls = goldens.arrays(entry), entry["calls"]
    spec = rope.from_hf(
        {
            "head_dim": entry["dim"],
            "max_position_embeddings": entry["max_position_embeddings"],
            "rope_parameters": {"rope_theta": entry["base"], **entry["rope_parameters"]},
        }
    )
    in_module = calls[-1]
    if spec.method == "dynamic_ntk" and calls[-1] >= spec.train_length:
        in_module = max(calls)
    at_init = spec.train_length if spec.method == "dynamic_ntk" else 1
    for name, length in [
        ("inv_freq", calls[-1]),
        ("inv_freq_in_module", in_module),
        ("inv_freq_at_init", at_init),
    ]:
        np.testing.assert_allclose(rope.frequencies(spec, length).inv_freq64, arrays[name], rtol=2e-6)
    freqs = rope.frequencies(spec, in_module)
    assert abs(freqs.attention_factor - entry["attention_factor"]) <= 1e-6
    allowed = tolerance(arrays["positions"], scale=spec.scale if spec.method == "linear" else 1.0)
    for ours, name in zip(table(freqs, arrays["positions"]), ("cos", "sin"), strict=True):
        assert (np.abs(ours - arrays[name]) <= allowed).all()


APPLIED = {
    "apply.half_rotation.dim16": ("half", {"scale": 4, "train_length": 64}),
    "apply.interleaved.dim16": ("interleaved", {"scale": 2, "train_length": 65, "beta_fast": 2}),
}


@each("apply")
def test_rotation(goldens, entry):
    arrays = goldens.arrays(entry)
    layout, options = APPLIED[entry["id"]]
    freqs = rope.frequencies(rope.RopeSpec(method="yarn", head_dim=16, resonance=True, **options))
    positions = arrays["position_ids"][0] if layout == "half" else np.arange(9)
    cos, sin = jitted(freqs, positions)
    for ours, name in ((cos, "cos"), (sin, "sin")):
        np.testing.assert_allclose(ours, arrays[name][:, :8], rtol=0, atol=3e-6)
    for name in ("q", "k"):
        x, expected = arrays[name], arrays[f"{name}_out"]
        if layout == "half":  # the release's LLaMA has heads before time
            x, expected = x.swapaxes(1, 2), expected.swapaxes(1, 2)
        turned = rope.rotate(jax.numpy.asarray(x), cos, sin, layout)
        np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-5)
        assert np.abs(expected - x).max() > 0.5
