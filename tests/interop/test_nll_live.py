"""Per-token NLL of a checkpoint against transformers': what every perplexity here is made of."""

import numpy as np
import pytest

from resonance_jax import evaluate, interop, rope

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.interop.test_llama_live import (  # noqa: E402
    LENGTH,
    SIZES,
    TOKENS,
    TYPES,
    YARN,
    Injected,
    norms_in_float64,
    options_of,
    transformers_model,
)

pytestmark = pytest.mark.parity


def nll_of(model, tokens) -> np.ndarray:
    with torch.no_grad():
        ids = torch.as_tensor(tokens, dtype=torch.long)
        logits = model(ids).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
    return losses.view(len(tokens), -1).numpy()


@pytest.mark.parametrize("name", TYPES)
def test_float32_at_eight_times_the_training_length(tmp_path, name):
    model = transformers_model(**options_of(TYPES[name]))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    lm = interop.load_hf(tmp_path)
    nll = evaluate.token_nll(lm, TOKENS, rope.frequencies(lm.rope, length=LENGTH))
    np.testing.assert_allclose(nll, nll_of(model, TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_float64_with_our_cosines_at_4096(x64, tmp_path, family):
    window = {} if family == "Llama" else {"sliding_window": 300}
    options = options_of(YARN) | {"attn_implementation": "sdpa", "max_position_embeddings": 4096}
    model = transformers_model(family, torch.float64, **window, **options)
    model.save_pretrained(tmp_path)
    lm = interop.load_hf(tmp_path, dtype="float64")
    norms_in_float64(model)
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (1, 4096))
    spec = rope.RopeSpec("yarn", head_dim=16, scale=8.0, train_length=512, resonance=True)
    freqs = rope.frequencies(spec)
    cos, sin = rope.cos_sin(freqs, np.arange(4096), np.float64)
    model.model.rotary_emb = Injected(np.asarray(cos), np.asarray(sin))
    nll = evaluate.token_nll(lm, tokens, freqs)
    assert nll.dtype == np.float64
    np.testing.assert_allclose(nll, nll_of(model, tokens), rtol=0, atol=1e-9)
