"""The parity check: right checkpoints pass at 1e-9, wrong ones fail at the first wrong tensor."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resonance_jax import interop, rope
from resonance_jax.interop import torch_rope
from resonance_jax.model import Decoder, DecoderConfig

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TRAINED, LENGTHS = 32, (16, 32, 256)
LLAMA = DecoderConfig(
    vocab_size=97, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, norm_eps=1e-5
)
YARN = rope.RopeSpec(method="yarn", head_dim=16, scale=8.0, train_length=TRAINED)
OPTIONS = {
    "linear": {"scale": 8.0},
    "ntk": {"scale": 8.0},
    "dynamic_ntk": {"dynamic_factor": 2.0},
    "ntk_by_parts": {"scale": 8.0},
    "yarn": {"scale": 8.0},
    "llama3": {"scale": 8.0},
    "proportional": {"scale": 8.0, "partial_rotary_factor": 0.5},
    "longrope": {
        "scale": 8.0,
        "short_factor": [1.0 + 0.1 * j for j in range(8)],
        "long_factor": [1.0 + 0.9 * j for j in range(8)],
    },
}
SPECS = [
    rope.RopeSpec(
        method=method, head_dim=16, train_length=TRAINED, resonance=resonance, **OPTIONS.get(method, {})
    )
    for method in rope.METHODS
    for resonance in (False, True)
]


def checkpoint(folder, config=LLAMA, spec=YARN):
    lm = Decoder(config, key=jax.random.key(0))
    # Attention that chooses and norms that differ from one: else much could be wrong unseen.
    noise = iter(jax.random.split(jax.random.key(1), 64))
    louder = lambda path, x: x * 4 if path[-1].key in ("q", "k") else x
    params = jax.tree_util.tree_map_with_path(louder, lm.params)
    for norm in ("attn_norm", "mlp_norm"):
        x = params["layers"][norm]
        params["layers"][norm] = x + 0.2 * jax.random.normal(next(noise), x.shape)
    interop.save_hf(lm.replace_params(params), folder, rope=spec, length=LENGTHS[-1])
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("llama") / "checkpoint")


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistral") / "checkpoint"
    return checkpoint(folder, LLAMA.replace(window=20))


@pytest.mark.parametrize(
    ("family", "specs"),
    [("llama", SPECS), ("mistral", SPECS[:1]), pytest.param("mistral", SPECS, marks=pytest.mark.full)],
)
def test_every_encoding_in_float64(request, family, specs):
    """Each rope type, each with and without Resonance, below, at and past the training length."""
    found = interop.parity(request.getfixturevalue(family), specs, LENGTHS)
    assert found.ok, found.verdict()
    assert max(tap.error for tap in found.taps if tap.precision != "-") < 1e-9
    per_run = 2 + 1 + 5 * LLAMA.n_layers + 3
    assert len(found.taps) == len(specs) * len(LENGTHS) * per_run
    assert "tensors agree" in found.verdict()


def test_float32_bfloat16_and_gradients(llama):
    found = interop.parity(llama, None, LENGTHS[2:], dtype=("float32", "bfloat16"), gradients=True)
    assert found.ok, found.verdict()
    assert {tap.precision for tap in found.taps} == {"-", "highest", "default"}
    assert all(tap.tolerance is None for tap in found.taps if tap.dtype == "bfloat16")
    gradients = [tap for tap in found.taps if tap.name.startswith("gradient of ")]
    assert len({tap.name for tap in gradients}) == 2 + 9 * LLAMA.n_layers + 1
    (phases,) = found.phases
    assert phases.length == LENGTHS[2] and 0 < phases.cos_sin < 1e-4


def test_gradients_in_float64(mistral):
    found = interop.parity(mistral, None, (64,), gradients=True)
    assert found.ok and any(tap.name.startswith("gradient") for tap in found.taps), found.verdict()


def edited(folder, into, **keys):
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    for key, value in keys.items():
        for part in (config, config["rope_scaling"], config["rope_parameters"]):
            if key in part or (part is not config and key not in config):
                part[key] = value
    (into / "config.json").write_text(json.dumps(config))
    return into


def half_ramp(folder, into):
    """YaRN whose ramp is laid over half of the dimensions, written as the table that it is."""
    right = rope.frequencies(YARN)
    wrong = rope.frequencies(dataclasses.replace(YARN, head_dim=8))
    table = np.repeat(wrong.inv_freq64, 2) * (right.inv_freq64[0] / wrong.inv_freq64[0])
    freqs = rope.from_record({**rope.to_record(right), "inv_freq": table.tolist()})
    lm = interop.load_hf(folder)
    interop.save_hf(lm, into, rope=YARN, freqs=freqs, length=LENGTHS[-1])
    return into


def metas_layout(folder, into):
    """q and k with the rows of each head in Meta's order: the pairs (2i, 2i+1) side by side."""
    shutil.copytree(folder, into)
    stored = load_file(into / "model.safetensors")
    for name, x in stored.items():
        if "q_proj" in name or "k_proj" in name:
            heads = x.reshape(-1, 2, LLAMA.head_dim // 2, x.shape[1])
            stored[name] = np.ascontiguousarray(heads.swapaxes(1, 2).reshape(x.shape))
    save_file(stored, into / "model.safetensors", metadata={"format": "pt"})
    return into


WRONG = {
    "rows in Meta's order": (metas_layout, "layer 0 q"),
    "ramp over half the dimensions": (half_ramp, "inv_freq"),
    "square root of the attention factor": (
        lambda a, b: edited(a, b, attention_factor=float(np.sqrt(0.1 * np.log(8.0) + 1))),
        "attention factor",
    ),
    "twice the base": (lambda a, b: edited(a, b, rope_theta=20_000.0), "inv_freq"),
    "epsilon 1e-6 for 1e-5": (lambda a, b: edited(a, b, rms_norm_eps=1e-6), "layer 0 q"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_checkpoint_is_caught_and_named(llama, tmp_path, name):
    make, first = WRONG[name]
    wrong = make(llama, tmp_path / "wrong")
    found = interop.parity(wrong, None, (TRAINED,), reference=llama)
    assert not found.ok
    assert found.first_wrong.name.startswith(first), found.verdict()
    assert f"the first wrong one is {first}" in found.verdict()


def test_a_wrong_mask_is_caught(mistral, tmp_path):
    wrong = edited(mistral, tmp_path / "wrong", sliding_window=19)
    found = interop.parity(wrong, None, (16, 32), reference=mistral)
    # Up to 19 positions both windows see everything.
    assert {tap.length for tap in found.taps if tap.wrong} == {32}
    assert found.first_wrong.name == "layer 0 attention"


def test_torchs_own_rules_are_transformers():
    """Where transformers has a name too, the rules written in torch give its table."""
    named = 0
    for spec in SPECS:
        for length in LENGTHS:
            theirs = torch_rope.table(spec, length)
            if "transformers" in theirs.source:
                inv_freq, factor = torch_rope._table(spec, length)
                np.testing.assert_allclose(inv_freq, theirs.inv_freq, rtol=2e-6)
                assert factor == pytest.approx(theirs.attention_factor, abs=1e-9)
                named += 1
    assert named == 3 * len([m for m in rope.METHODS if m not in ("ntk", "dynamic_yarn")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "unknown dtype"),
        ({"lengths": (1, 8)}, "at least 2 positions"),
        ({"lengths": (8,), "tokens": np.zeros((1, 4), np.int32)}, "have 4 positions"),
    ],
)
def test_bad_input(llama, options, message):
    with pytest.raises(ValueError, match=message):
        interop.parity(llama, **options)
