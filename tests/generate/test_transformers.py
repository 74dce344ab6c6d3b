"""Greedy generation token by token as transformers', for encodings that its cache can hold."""

import numpy as np
import pytest

from resonance_jax import generate, interop, rope

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.interop.test_llama_live import TYPES, options_of, transformers_model  # noqa: E402

pytestmark = pytest.mark.parity

NEW = 200
PROMPTS = [np.random.default_rng(seed).integers(0, 97, n) for seed, n in ((1, 40), (2, 51))]


def theirs(model, prompt):
    with torch.no_grad():
        ids = torch.as_tensor(prompt[None], dtype=torch.long)
        options = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
        return model.generate(ids, **options)[0, len(prompt) :].numpy()


@pytest.mark.parametrize("name", ["default", "linear", "yarn", "llama3", "longrope"])
def test_two_hundred_tokens(tmp_path, name):
    """In a ragged batch here, alone there; prompts are past the training length of 32, so that longrope does
    not switch."""
    model = transformers_model(**options_of(TYPES[name]))
    model.save_pretrained(tmp_path)
    lm = interop.load_hf(tmp_path)
    ours = generate.generate(lm, PROMPTS, rope.frequencies(lm.rope, length=256), max_new_tokens=NEW)
    np.testing.assert_array_equal(ours.tokens[0], theirs(model, PROMPTS[0]))
    assert len(set(ours.tokens[0][-50:].tolist())) > 10  # not one that repeats itself


def test_mistral_with_a_window(tmp_path):
    model = transformers_model("Mistral", sliding_window=20, head_dim=24, **options_of(TYPES["default"]))
    model.save_pretrained(tmp_path)
    lm = interop.load_hf(tmp_path)
    ours = generate.generate(lm, PROMPTS[:1], rope.frequencies(lm.rope), max_new_tokens=NEW)
    np.testing.assert_array_equal(ours.tokens[0], theirs(model, PROMPTS[0]))
