"""A checkpoint that says two things at once, or more than it holds, is refused before anything is read."""

import json
import time

import jax
import pytest

from resonance_jax import interop, model, rope


@pytest.fixture
def small(tmp_path):
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 24}
    lm = model.Decoder(model.PRESETS["tiny"].replace(**shape), jax.random.key(0))
    interop.save_hf(lm, tmp_path / "small", rope=rope.RopeSpec(head_dim=8, train_length=32))
    return tmp_path / "small"


def test_a_key_of_the_config_twice(small):
    file = small / "config.json"
    text = file.read_text().rstrip().removesuffix("}")
    file.write_text(text + ', "hidden_size": 32}')
    with pytest.raises(ValueError, match="states the key 'hidden_size' twice in one object"):
        interop.load_hf(small)
    file.write_text(text + ', "hidden_size": 16}')
    interop.load_hf(small)


def test_a_tensor_twice_in_one_file(small):
    file = small / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    norm, other = "model.norm.weight", "model.layers.0.input_layernorm.weight"
    again = f", {json.dumps(norm)}: {json.dumps(header[other])}}}"
    text = content[8:end].decode().rstrip().removesuffix("}") + again
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content[end:])
    with pytest.raises(
        ValueError, match=r"model\.safetensors.*damaged|states the key 'model\.norm\.weight' twice"
    ):
        interop.load_hf(small)


def test_layers_that_are_not_there(small):
    file = small / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 2**31}))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"small lacks tensor model\.layers\.1\..*states 2147483648 layers"):
        interop.load_hf(small)
    assert time.monotonic() - began < 5


def test_a_refusal_names_the_checkpoint(small):
    file = small / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": []}))
    with pytest.raises(ValueError, match=r"small: config\.json states model_type=\[\]"):
        interop.load_hf(small)
