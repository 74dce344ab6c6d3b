"""Hugging Face directories: read and written exactly, in little memory, refused in one sentence."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from resonance_jax import interop, rope
from resonance_jax.interop import hf_export, hf_weights
from resonance_jax.interop.hf_config import from_hf_config
from resonance_jax.model import Decoder, DecoderConfig
from resonance_jax.model.parameters import map_declared
from resonance_jax.parallel.mesh import make_mesh

CONFIG = DecoderConfig(
    vocab_size=24, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40, norm_eps=1e-6
)
SPEC = rope.RopeSpec(method="yarn", head_dim=8, scale=4.0, train_length=32)
RESONANT = rope.RopeSpec(method="yarn", head_dim=8, scale=4.0, train_length=32, resonance=True)
HF = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 32,
}


def state(config=CONFIG, dtype=np.float32):
    """Random tensors under Hugging Face's names: exact in every dtype that is stored."""
    rng = np.random.default_rng(0)
    draw = lambda shape: (rng.integers(-64, 64, shape) / 64).astype(dtype)
    return {name: draw(shape) for name, (_, _, shape) in hf_weights.tensors(config).items()}


def write(folder, tensors, hf=HF, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    placed = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def decoder(config=CONFIG, spec=SPEC, dtype=jnp.float32):
    rng = np.random.default_rng(1)
    params = map_declared(lambda _, p: jnp.asarray(rng.normal(size=p.shape), dtype), config)
    return Decoder(config, rope=spec, params=params)


# Reading.


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_value_arrives_where_it_belongs(tmp_path, stored, dtype):
    tensors = state(dtype=stored)
    lm = interop.load_hf(write(tmp_path, tensors, shards=2), dtype=dtype)
    assert lm.config == CONFIG.replace(dtype=dtype)
    params = jax.tree.map(np.asarray, lm.params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    same = lambda ours, theirs: np.testing.assert_array_equal(ours.astype("f4"), theirs.astype("f4"))
    same(params["embed"], tensors["model.embed_tokens.weight"])
    same(params["head"], tensors["lm_head.weight"].T)
    same(params["final_norm"], tensors["model.norm.weight"])
    for layer in range(3):
        p = {name: value[layer] for name, value in params["layers"].items()}
        prefix = f"model.layers.{layer}."
        same(p["attn_norm"], tensors[f"{prefix}input_layernorm.weight"])
        same(p["mlp_norm"], tensors[f"{prefix}post_attention_layernorm.weight"])
        for name in "qkvo":
            same(p[name], tensors[f"{prefix}self_attn.{name}_proj.weight"].T)
        for name in ("gate", "up", "down"):
            same(p[name], tensors[f"{prefix}mlp.{name}_proj.weight"].T)


def test_long_tensors_are_read_in_blocks(tmp_path, monkeypatch):
    write(tmp_path, state())
    whole = interop.load_hf(tmp_path).params
    monkeypatch.setattr(hf_weights, "_BLOCK_BYTES", 4 * 7)  # less than a row, and no divisor of anything
    chex.assert_trees_all_equal(interop.load_hf(tmp_path).params, whole)


def test_tied_embeddings_with_and_without_a_copy_of_the_head(tmp_path):
    tied = CONFIG.replace(tie_embeddings=True)
    tensors, hf = state(tied), HF | {"tie_word_embeddings": True}
    lm = interop.load_hf(write(tmp_path / "a", tensors, hf))
    assert lm.config == tied and "head" not in lm.params
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    interop.load_hf(write(tmp_path / "b", copied, hf))
    other = tensors | {"lm_head.weight": -tensors["model.embed_tokens.weight"]}
    with pytest.raises(ValueError, match=r"ties the embeddings, but tensor lm_head\.weight is not"):
        interop.load_hf(write(tmp_path / "c", other, hf))


def test_stored_rotary_tables_are_passed_over(tmp_path):
    old = state() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    interop.load_hf(write(tmp_path, old))


def test_a_mesh_reads_each_slice_once(tmp_path, monkeypatch):
    """Sharded loading gives the same numbers, and reads one model's worth whatever the replicas."""
    write(tmp_path, state(), shards=2)
    read, real = [], hf_weights._read

    def counted(*args):
        read.append(real(*args))
        return read[-1]

    monkeypatch.setattr(hf_weights, "_read", counted)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    lm = interop.load_hf(tmp_path, mesh=mesh)
    assert sum(part.size for part in read) == lm.count_parameters()
    assert max(part.size for part in read) == 3 * 16 * 40 // 4
    assert jax.tree.map(lambda x: x.sharding, lm.params) == lm.shardings()
    chex.assert_trees_all_equal(lm.params, interop.load_hf(tmp_path).params)


# Writing.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_saved_and_loaded_again(tmp_path, dtype, max_shard_bytes):
    lm = decoder(CONFIG.replace(window=5, dtype=jnp.dtype(dtype).name), dtype=dtype)
    (tmp_path / "out").mkdir()  # an empty directory is as good as none
    interop.save_hf(lm, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes == 4000)
    if len(files) > 1:
        sizes = [sum(x.nbytes for x in load_file(file).values()) for file in files]
        assert max(sizes) <= 4000
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(sizes)
    again = interop.load_hf(tmp_path / "out", dtype=lm.config.dtype)
    assert again.config == lm.config
    assert again.rope == SPEC
    chex.assert_trees_all_equal(again.params, lm.params)
    assert not (tmp_path / "out.partial").exists()


def test_a_table_without_a_name_comes_back_as_longrope(tmp_path):
    interop.save_hf(decoder(spec=RESONANT), tmp_path / "out", length=256)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "longrope"
    assert (config["max_position_embeddings"], config["head_dim"]) == (256, 8)
    lm = interop.load_hf(tmp_path / "out")
    assert rope.same(rope.frequencies(lm.rope, length=256), rope.frequencies(RESONANT))


def test_any_table_and_any_key(tmp_path):
    table = rope.from_inv_freq(np.array([1.0, 0.3, 0.1, 0.02]), attention_factor=1.25)
    spec = rope.RopeSpec(head_dim=8, train_length=32)
    interop.save_hf(decoder(), tmp_path / "out", rope=spec, freqs=table, length=64, extra={"bos_token_id": 7})
    assert json.loads((tmp_path / "out/config.json").read_text())["bos_token_id"] == 7
    lm = interop.load_hf(tmp_path / "out")
    found = rope.frequencies(lm.rope, length=64)
    np.testing.assert_allclose(found.inv_freq64, table.inv_freq64, rtol=1e-12)
    np.testing.assert_allclose(found.attention_factor, 1.25)


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def full_as_safetensors_says_it(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    for name, failure in (("_write_json", full), ("save_file", full_as_safetensors_says_it)):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
            patched.setattr(hf_export, name, failure)
            interop.save_hf(decoder(), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.partial").mkdir()  # what kill -9 leaves
    (tmp_path / "out.partial/model-00001-of-00002.safetensors").write_text("half")
    interop.save_hf(decoder(), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"mlp": "relu"}, {}, "have no mlp='relu'; expected 'swiglu'"),
        ({"rope_layout": "interleaved"}, {}, "have no rope_layout='interleaved'"),
        ({"attention_scale": 1.0}, {}, r"have no attention_scale=1\.0"),
        ({"head_scale": 0.5}, {}, r"have no head_scale=0\.5"),
        (
            {},
            {"rope": rope.RopeSpec("dynamic_yarn", head_dim=8, train_length=32)},
            "Dynamic YaRN depends on the length in use, .* with length=",
        ),
        ({}, {"rope": RESONANT, "length": 0}, "a positive integer, got 0"),
        (
            {},
            {"rope": rope.RopeSpec(head_dim=8, resonance=True), "length": 64},
            "spec's train_length .got None",
        ),
        ({}, {"rope": rope.RopeSpec(head_dim=16)}, r"rotate whole heads \(8 dims here\)"),
        ({}, {"rope": rope.RopeSpec(head_dim=8, partial_rotary_factor=0.5)}, "rotates 4"),
    ],
)
def test_what_hugging_face_cannot_express(tmp_path, changes, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        interop.save_hf(decoder(CONFIG.replace(**changes)), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_save_needs_an_encoding_and_an_empty_place(tmp_path):
    with pytest.raises(ValueError, match=r"states no encoding .* rope=RopeSpec"):
        interop.save_hf(decoder(spec=None), tmp_path / "out")
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ValueError, match="exists already; name a new or an empty directory"):
        interop.save_hf(decoder(), tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


LENGTHS = {"original_max_position_embeddings": 32}
SCALINGS = {
    "plain": (None, 64),
    "linear": ({"type": "linear", "factor": 8.0}, 100),
    "linear with L": ({"type": "linear", "factor": 8.0, **LENGTHS}, 100),
    "dynamic NTK": ({"type": "dynamic", "factor": 2.0}, 64),
    "YaRN that states less than s L": ({"type": "yarn", "factor": 4.0, **LENGTHS}, 40),
    "YaRN that states more": ({"type": "yarn", "factor": 4.0, **LENGTHS}, 1000),
    "Llama 3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LENGTHS},
        512,
    ),
    "LongRoPE": (
        {"type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, **LENGTHS},
        128,
    ),
    "silent": ({"type": "linear", "factor": 8.0}, None),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_a_round_trip_keeps_the_stated_context(tmp_path, name):
    """Twice around: the number of config.json, and the encoding with it, whatever s L comes to."""
    scaling, context = SCALINGS[name]
    stated = {key: HF[key] for key in HF if key != "max_position_embeddings"} | {"rope_scaling": scaling}
    stated |= {} if context is None else {"max_position_embeddings": context}
    first = interop.load_hf(write(tmp_path / "0", state(), stated))
    assert first.context_length == context
    lm = first
    for number in (1, 2):
        interop.save_hf(lm, tmp_path / str(number))
        written = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert written.get("max_position_embeddings") == context
        lm = interop.load_hf(tmp_path / str(number))
        assert (lm.rope, lm.context_length) == (first.rope, context)


def test_another_encoding_raises_the_context_only_where_it_reaches_further(tmp_path):
    def written(lm, **options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        interop.save_hf(lm, folder, **options)
        return json.loads((folder / "config.json").read_text())["max_position_embeddings"]

    lm = decoder().replace(context_length=64)
    assert written(lm) == 64  # its own encoding reaches 128, but 64 is what was stated
    assert written(lm, rope=dataclasses.replace(SPEC, scale=8.0)) == 256
    assert written(lm, rope=dataclasses.replace(RESONANT, scale=8.0)) == 256
    assert written(lm, rope=rope.RopeSpec(head_dim=8, train_length=32)) == 64
    assert written(lm, length=100) == 100 and written(lm, length=50) == 64
    dynamic = rope.RopeSpec("dynamic_ntk", head_dim=8, train_length=32)
    assert written(lm, rope=dynamic) == 32  # transformers would take 64 for L
    assert written(decoder()) == written(decoder(spec=RESONANT)) == 128


def test_a_context_that_is_no_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_position_embeddings is -5, expected a positive integer"):
        linear = {"rope_scaling": {"type": "linear", "factor": 8.0}, "max_position_embeddings": -5}
        interop.load_hf(write(tmp_path, state(), HF | linear))


# config.json.


def test_defaults_are_those_of_transformers():
    silent = {key: HF[key] for key in HF if key not in ("num_key_value_heads", "rms_norm_eps", "head_dim")}
    llama, spec = from_hf_config(silent | {"sliding_window": 3})
    assert (llama.n_kv_heads, llama.head_dim, llama.norm_eps, llama.window) == (4, 4, 1e-6, None)
    assert spec == rope.RopeSpec(head_dim=4, train_length=32)
    heads = {"hidden_size": 64, "num_attention_heads": 16}
    mistral, _ = from_hf_config(
        silent | heads | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    )
    assert (mistral.n_kv_heads, mistral.window) == (8, 4096)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}, 'model_type="phi3".*supported are'),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias=true, which is not supported; expected false"),
        ({"mlp_bias": True}, "mlp_bias=true"),
        ({"hidden_act": "gelu"}, 'hidden_act="gelu", which is not supported; expected "silu"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "16"}, 'hidden_size is "16", expected a positive integer'),
        ({"vocab_size": None}, "vocab_size is missing, expected a positive integer"),
        ({"num_key_value_heads": 3}, "n_heads must be a multiple of n_kv_heads"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or false"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06, expected a positive number"),
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "unknown rope type 'spiral'"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        interop.load_hf(write(tmp_path, state(), HF | changes))


# Damage.


def without(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            without("model.layers.1.mlp.up_proj.weight"),
            r"lacks tensor model\.layers\.1\.mlp\.up_proj\.weight",
        ),
        (
            lambda t: t.update({"model.layers.3.mlp.up_proj.weight": np.zeros((40, 16), "f4")}),
            r"unknown tensor model\.layers\.3\.mlp\.up_proj\.weight; its config.json states 3 layers",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": np.zeros((16, 17), "f4")}),
            r"k_proj\.weight has shape \(16, 17\), but config.json asks for \(16, 16\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(16, "i4")}),
            r"tensor model\.norm\.weight is stored as I32; supported are F32",
        ),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_wrong_tensors_are_named(tmp_path, damage, sentence, shards):
    tensors = state()
    damage(tensors)
    with pytest.raises(ValueError, match=sentence):
        interop.load_hf(write(tmp_path, tensors, shards=shards))


def test_truncated_files_name_the_tensor(tmp_path):
    file = write(tmp_path, state()) / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    ends = sorted(
        (entry["data_offsets"][1], name) for name, entry in header.items() if name != "__metadata__"
    )
    (_, name), (end, _) = ends[-1], ends[-2]
    file.write_bytes(raw[: 8 + length + end + 1])
    with pytest.raises(ValueError, match=f"is damaged: it breaks off before the end of tensor {name}"):
        interop.load_hf(tmp_path)
    for start in (raw[: length // 2], raw[:5], b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(start)
        with pytest.raises(ValueError, match="is damaged: it breaks off inside its header"):
            interop.load_hf(tmp_path)
    file.write_bytes(raw[:8] + b"!" + raw[9:])
    with pytest.raises(ValueError, match=r"is damaged: .*header"):
        interop.load_hf(tmp_path)


def test_directories_that_are_no_model(tmp_path):
    def refused(sentence):
        with pytest.raises(ValueError, match=sentence):
            interop.load_hf(tmp_path)

    with pytest.raises(ValueError, match="is not a directory"):
        interop.load_hf(tmp_path / "nowhere")
    refused("has no config.json")
    (tmp_path / "config.json").write_text("{")
    refused("is not JSON")
    (tmp_path / "config.json").write_text("[]")
    refused("expected a JSON object")
    (tmp_path / "config.json").write_text(json.dumps(HF))
    refused(r"has no \*\.safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    refused(r"only pickled weights \(pytorch_model\.bin\).*never opened")
    for name in ("a", "b"):
        save_file({name: np.zeros(1)}, tmp_path / f"{name}.safetensors")
    refused(r"2 safetensors files, but no model\.safetensors\.index\.json")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("{", r"index\.json is not JSON: it breaks off at its end"),
        ({"metadata": {}}, r"weight_map of .*index\.json is null, expected a JSON object"),
        ({"weight_map": {"x": 3}}, r"x in .*index\.json is a number, expected a string"),
        (
            {"weight_map": {"x": "part-9.safetensors"}},
            "places tensor x in 'part-9.safetensors', which is not in",
        ),
        ({"weight_map": {"x": "../part-0.safetensors"}}, "places tensor x in '../part-0.safetensors'"),
        (
            {"weight_map": {"x": "part-0.safetensors"}},
            "places tensor x in part-0.safetensors, which lacks it",
        ),
    ],
)
def test_damaged_indices(tmp_path, index, sentence):
    folder = write(tmp_path / "model", state(), shards=2)
    shutil.copy(folder / "part-0.safetensors", tmp_path)
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        interop.load_hf(folder)


def test_float64_needs_64_bit_jax(tmp_path, x64):
    write(tmp_path, state(dtype=np.float64))
    assert interop.load_hf(tmp_path, dtype="float64").params["embed"].dtype == np.float64
    with jax.enable_x64(False), pytest.raises(ValueError, match="JAX_ENABLE_X64=1"):
        interop.load_hf(tmp_path, dtype="float64")


def test_parameters_that_lie_on_the_host(tmp_path):
    """One run of many (train.ManyRuns.lm) holds plain numpy arrays."""
    lm = Decoder(CONFIG, key=jax.random.key(0))
    host = lm.replace_params(jax.tree.map(np.asarray, lm.params))
    interop.save_hf(host, tmp_path / "out", rope=SPEC)
    chex.assert_trees_all_equal(interop.load_hf(tmp_path / "out").params, lm.params)
