"""Checkpoints and logits against transformers itself, at eight times the training length."""

import chex
import jax
import numpy as np
import pytest

from resonance_jax import interop, rope
from resonance_jax.model import forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

TRAINED, LENGTH, SCALE = 32, 256, 8.0
LOGITS = 2e-4
SIZES = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-6,
    attn_implementation="eager",
)
YARN = dict(rope_type="yarn", factor=SCALE, original_max_position_embeddings=TRAINED)
TYPES = {
    "default": dict(rope_type="default"),
    "linear": dict(rope_type="linear", factor=SCALE),
    "dynamic": dict(rope_type="dynamic", factor=2.0),
    "yarn": YARN,
    "yarn untruncated": dict(**YARN, truncate=False, beta_fast=16.0, beta_slow=2.0),
    "yarn mscale": dict(**YARN, mscale=1.0, mscale_all_dim=0.5),
    "yarn attention_factor": dict(**YARN, attention_factor=1.3),
    "llama3": dict(
        rope_type="llama3",
        factor=SCALE,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=TRAINED,
    ),
    "longrope": dict(
        rope_type="longrope",
        factor=SCALE,
        original_max_position_embeddings=TRAINED,
        short_factor=[1.0 + 0.1 * j for j in range(8)],
        long_factor=[1.0 + 0.9 * j for j in range(8)],
    ),
    "proportional": dict(rope_type="proportional", factor=SCALE, partial_rotary_factor=0.5),
}
TOKENS = np.random.default_rng(0).integers(0, 97, (2, LENGTH)).astype(np.int32)

run = jax.jit(forward, static_argnums=0)


def transformers_model(family="Llama", dtype=torch.float32, **options):
    """A random model of the reference's goldens' make: attention chooses, norms differ from one, logits of
    standard deviation 2 (what the tolerance was measured at)."""
    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**SIZES | options)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.normal_(1.0, 0.2)
            else:
                own = {"embed_tokens": 1.0, "q_proj": 0.2, "k_proj": 0.2, "lm_head": 0.25}
                p.normal_(0.0, own.get(name.split(".")[-2], p.shape[1] ** -0.5))
    return model.to(dtype).eval()


def logits_of(model):
    with torch.no_grad():
        return model(torch.as_tensor(TOKENS, dtype=torch.long)).logits.numpy()


def options_of(rope_parameters):
    dynamic = rope_parameters["rope_type"] == "dynamic"
    return dict(
        rope_parameters=dict(rope_theta=10_000.0, **rope_parameters),
        max_position_embeddings=TRAINED if dynamic else LENGTH,
    )


def ours(lm, spec=None):
    return np.asarray(run(lm.config, lm.params, TOKENS, rope.frequencies(spec or lm.rope, length=LENGTH)))


@pytest.fixture(scope="module")
def traced_once():
    return jax.jit(chex.assert_max_traces(forward, n=1), static_argnums=0)


@pytest.mark.parametrize("name", TYPES)
def test_every_rope_type_both_ways(tmp_path, traced_once, name):
    """transformers writes and we read; we write and transformers reads: the same logits."""
    model = transformers_model(**options_of(TYPES[name]))
    theirs = logits_of(model)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    lm = interop.load_hf(tmp_path / "theirs")
    freqs = rope.frequencies(lm.rope, length=LENGTH)
    logits = np.asarray(traced_once(lm.config, lm.params, TOKENS, freqs))
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=LOGITS)

    interop.save_hf(lm, tmp_path / "ours", max_shard_bytes=100_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(model) and again.dtype == torch.float32
    np.testing.assert_allclose(logits_of(again), theirs, rtol=0, atol=1e-5)


def test_old_layout_of_the_config(tmp_path):
    scaling = {"type": "yarn", "factor": SCALE, "original_max_position_embeddings": TRAINED}
    model = transformers_model(rope_scaling=scaling, rope_theta=500.0, max_position_embeddings=LENGTH)
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(ours(interop.load_hf(tmp_path)), logits_of(model), rtol=0, atol=LOGITS)


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_checkpoints(tmp_path, tied):
    model = transformers_model(dtype=torch.bfloat16, tie_word_embeddings=tied, **options_of(YARN))
    model.save_pretrained(tmp_path)
    assert interop.load_hf(tmp_path, dtype="bfloat16").config.tie_embeddings == tied
    # Read again rather than model.float(), whose inverse frequencies would have been through bfloat16.
    exact = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    np.testing.assert_allclose(ours(interop.load_hf(tmp_path)), logits_of(exact), rtol=0, atol=LOGITS)


def test_mistral_with_a_window_both_ways(tmp_path):
    model = transformers_model("Mistral", sliding_window=20, head_dim=24, **options_of(TYPES["default"]))
    theirs = logits_of(model)
    model.save_pretrained(tmp_path / "theirs")
    lm = interop.load_hf(tmp_path / "theirs")
    assert (lm.config.window, lm.config.head_dim) == (20, 24)
    np.testing.assert_allclose(ours(lm), theirs, rtol=0, atol=LOGITS)
    interop.save_hf(lm, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(model)
    np.testing.assert_allclose(logits_of(again), theirs, rtol=0, atol=1e-5)


RESONANT = rope.RopeSpec(method="yarn", head_dim=16, scale=SCALE, train_length=TRAINED, resonance=True)


@pytest.mark.parametrize(
    "spec",
    [
        RESONANT,
        rope.RopeSpec(method="ntk", head_dim=16, scale=SCALE, train_length=TRAINED),
        rope.RopeSpec(method="dynamic_yarn", head_dim=16, train_length=TRAINED, resonance=True),
    ],
    ids=lambda spec: spec.title,
)
def test_encodings_that_transformers_cannot_name(tmp_path, spec):
    """Exported as longrope, they give our logits in unmodified transformers."""
    transformers_model(**options_of(TYPES["default"])).save_pretrained(tmp_path / "in")
    lm = interop.load_hf(tmp_path / "in")
    interop.save_hf(lm, tmp_path / "out", rope=spec, length=LENGTH)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert model.config.rope_parameters["rope_type"] == "longrope"
    np.testing.assert_allclose(logits_of(model), ours(lm, spec), rtol=0, atol=LOGITS)
    assert np.abs(ours(lm, spec) - ours(lm)).max() > 0.1


class Injected(torch.nn.Module):
    """Our cosines and sines in the place of transformers' rotary module."""

    def __init__(self, cos, sin):
        super().__init__()
        self.tables = [torch.as_tensor(np.concatenate([x, x], axis=-1))[None] for x in (cos, sin)]

    def forward(self, x, position_ids):
        return self.tables


def norms_in_float64(model):
    """transformers' norm computes in float32 whatever it is given; torch's own does not."""
    for block in (model.model, *model.model.layers):
        for name, child in list(block.named_children()):
            if name.endswith("norm"):
                norm = torch.nn.RMSNorm(SIZES["hidden_size"], eps=SIZES["rms_norm_eps"], dtype=torch.float64)
                norm.weight = child.weight
                setattr(block, name, norm)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_float64_with_our_cosines_on_both_sides(x64, tmp_path, family):
    window = {} if family == "Llama" else {"sliding_window": 20}
    model = transformers_model(
        family, torch.float64, **window, **options_of(YARN) | {"attn_implementation": "sdpa"}
    )
    model.save_pretrained(tmp_path)
    lm = interop.load_hf(tmp_path, dtype="float64")
    norms_in_float64(model)
    step = jax.jit(forward, static_argnums=0)
    for spec in (rope.RopeSpec(head_dim=16), lm.rope, RESONANT):
        freqs = rope.frequencies(spec)
        cos, sin = rope.cos_sin(freqs, np.arange(LENGTH), np.float64)
        model.model.rotary_emb = Injected(np.asarray(cos), np.asarray(sin))
        logits = step(lm.config, lm.params, TOKENS, freqs)
        assert logits.dtype == np.float64
        np.testing.assert_allclose(logits, logits_of(model), rtol=0, atol=1e-9)
