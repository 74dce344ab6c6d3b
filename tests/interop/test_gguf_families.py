"""GGUF files of every family, made as llama.cpp's converter makes them: weights and logits."""

import json

import jax
import numpy as np
import pytest

from resonance_jax import interop, rope
from resonance_jax.data.gguf_file import GgufFile
from resonance_jax.interop import gguf_model
from tests.interop.test_families import TOKENS, folder_of  # noqa: F401  (a fixture)

gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ARCHITECTURES = {"Qwen2": "QWEN2", "Qwen3": "QWEN3", "SmolLM3": "SMOLLM3", "Gemma 3": "GEMMA3"}
IN_TRANSFORMERS = ("Qwen2", "Qwen3", "Gemma 3")
PERMUTED = ("SmolLM3",)


def converted(folder, name, path):
    """convert_hf_to_gguf.py of a directory, in float32: gguf's own names, LLaMA's rows, Gemma's norms."""
    config = json.loads((folder / "config.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kind = gguf.MODEL_ARCH[ARCHITECTURES[name]]
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(0x100 + i) for i in range(config["vocab_size"] - 1)] + ["Āā"])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["Ā ā"])
    parameters = config["rope_parameters"]
    writer.add_rope_freq_base(parameters.get("full_attention", parameters)["rope_theta"])
    if name == "Gemma 3":
        writer.add_sliding_window(config["sliding_window"])
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        array = tensor.numpy()
        if name in PERMUTED and ("q_proj" in theirs or "k_proj" in theirs):
            n = heads if "q_proj" in theirs else keys
            array = array.reshape(n, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if name == "Gemma 3" and theirs.endswith("norm.weight"):
            array = array + 1
        writer.add_tensor(
            names.get_name(theirs, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(array)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def made(folder_of, tmp_path):  # noqa: F811
    def both(name):
        """The directory, with what a GGUF file does not say left at its default, and the file."""
        folder = folder_of("Gemma 3" if name == "Gemma 3" else name)
        return folder, converted(folder, name, tmp_path / "small.gguf")

    return both


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_file_is_the_directory(made, name):
    """Weights, encoding, shape. llama.cpp keeps no pattern and no factor: they are the published models'."""
    folder, file = made(name)
    ours, theirs = interop.load_hf(file), interop.load_hf(folder)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-7 if name == "Gemma 3" else 0)
    jax.tree.map(close, ours.params, theirs.params)
    assert ours.context_length == theirs.context_length
    plain = dict(attention_scale=None, layer_types=None, window=None, norm_eps=1e-6)
    assert ours.config.replace(**plain) == theirs.config.replace(**plain)
    if name == "Gemma 3":
        assert ours.config.attention_scale == 8**-0.5
        assert [kind.window for kind in ours.config.types] == [5, 5, 5]  # three layers of the pattern of six
        assert ours.rope[rope.SLIDING] == theirs.rope[rope.SLIDING]
    else:
        assert ours.rope == theirs.rope
    if name == "SmolLM3":
        assert all(kind.rope for kind in ours.config.types)  # every fourth is without, and there are three


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_logits_are_those_of_transformers_reading_the_same_file(made, name):
    folder, file = made(name)
    lm = interop.load_hf(file)
    # Of Qwen's files transformers does not read the head size, of Gemma's it takes it for 256.
    stated = {"config": transformers.AutoConfig.from_pretrained(folder)}
    known = {"query_pre_attn_scalar": 8} if name == "Gemma 3" else stated
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **known
    )
    with torch.no_grad():
        expected = model(torch.as_tensor(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(lm(TOKENS, rope.frequencies(lm.rope)), expected, rtol=0, atol=1e-4)


def test_the_rows_of_smollm3_are_put_back(made):
    """q·k does not change when both are permuted: only the rotation can tell."""
    folder, file = made("SmolLM3")
    held, own = gguf_model.hf_tensors(GgufFile(file)), interop.open_checkpoint(folder).tensors()
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(held[name][:], own[name][:])
    stored = GgufFile(file).tensors["blk.1.attn_q.weight"].rows(slice(None))
    assert np.abs(stored - own[name][:]).max() > 0.1
