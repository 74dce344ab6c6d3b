"""Our tables against numbers that PyTorch computed: the paper's released classes, and transformers 5.23.

Each entry of tests/goldens/rope_*.npz is restated as a RopeSpec that says what its class really computes,
which is not always what its name promises: PosGen's YaRN takes the extended length + 1 as L; tables of the
release never shrink after a long call, those of transformers do below the training length; a fine-tuned
dynamic YaRN falls back to s = n / max_position_embeddings past its maximum.
"""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from resonance_jax import rope

FILES = ("rope_llama.npz", "rope_separate.npz", "rope_posgen.npz", "rope_hf.npz")
MANIFEST = json.loads((Path(__file__).parents[1] / "goldens" / "manifest.json").read_text())
ENTRIES = [e for e in MANIFEST["entries"] if e["file"] in FILES]

LEFT_OUT = {
    "part_ntk": "the older by-parts rule with two ramps and an NTK base, which no paper defines",
    "dynamic_part_ntk": "the same rule by the length in use",
    "bf16.res_rope": "a defect of the release: plain Resonance RoPE computes its angles in bfloat16",
}


def reason_left_out(entry):
    return LEFT_OUT.get(entry.get("method"), LEFT_OUT.get(entry["id"]))


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


def stated(entry):
    """(RopeSpec, length) of what a class of the release computes after its sequence of calls."""
    ctor, calls, method = entry["ctor"], entry["calls"], entry["method"]
    longest, most = max(calls), ctor["max_position_embeddings"]
    scale = ctor.get("scaling_factor", ctor.get("scale", ctor.get("alpha")))
    options = {"head_dim": ctor["dim"], "base": ctor["base"], "resonance": entry["resonance"]}
    if method == "none":
        return rope.RopeSpec(**options), longest
    if method in ("linear", "ntk"):
        return rope.RopeSpec(method=method, scale=scale, **options), longest
    if method == "dynamic_linear":
        return rope.RopeSpec(method="linear", scale=longest / most, **options), longest
    if method == "dynamic_ntk":
        factor = ctor.get("scaling_factor", ctor.get("ntk"))
        return rope.RopeSpec(method=method, train_length=most, dynamic_factor=factor, **options), longest
    assert method in ("yarn", "dynamic_yarn"), method
    # PosGen's classes have no original length: they take the longest one for it.
    options["train_length"] = ctor.get("original_max_position_embeddings", most)
    if method == "dynamic_yarn" and not (ctor.get("finetuned") and longest > most):
        return rope.RopeSpec(method=method, **options), longest
    if entry["ref_class"].startswith("Mistral"):
        options |= {"beta_fast": 128, "beta_slow": 2, "attention_factor": 0.07 * math.log(scale) + 1}
    elif "beta_fast" in ctor:
        options["beta_fast"] = ctor["beta_fast"]
    scale = longest / most if method == "dynamic_yarn" else scale
    return rope.RopeSpec(method="yarn", scale=scale, **options), longest


def tolerance(positions, resonance=False, scale=1.0):
    """f64[P, 1]: what float32 arithmetic may differ by at a position (measured, JAX against PyTorch)."""
    bounds = np.array([3e-5, 5e-4, 2e-3, 5e-3])
    plain = bounds[np.searchsorted([257, 4096, 16_384, 65_535], positions / scale)]
    return np.full((len(positions), 1), 3e-6) if resonance else plain[:, None]


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
