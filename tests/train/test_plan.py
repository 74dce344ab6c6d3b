"""The closed form against what XLA says it will take, and the paper's settings against the chips' memory."""

from pathlib import Path

import jax
import numpy as np
import pytest

from resonance_jax import model, rope, train
from resonance_jax.files import read_json
from resonance_jax.parallel import memory
from resonance_jax.parallel.mesh import fill, make_mesh
from resonance_jax.train.plan import chip, plan
from resonance_jax.train.run_program import RunProgram

ONE = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
SHAPE = dict(vocab_size=2048, d_model=256, n_heads=4, head_dim=64, tie_embeddings=False)
POLICIES = ("none", "dots", "attention", "full")
SHAPES = {
    "deep": (dict(n_layers=6, n_kv_heads=4, d_ff=688), 2, 1024, 0, ONE),
    "grouped heads, long": (dict(n_layers=2, n_kv_heads=1, d_ff=1024), 1, 4096, 0, ONE),
    "accumulated": (dict(n_layers=3, n_kv_heads=2, d_ff=688), 4, 1024, 2, ONE),
}


MORE = [(remat, name) for remat in ("attention", "none") for name in list(SHAPES)[1:]]


@pytest.mark.parametrize(
    ("remat", "name"),
    [
        *((remat, name) for remat in ("full", "dots") for name in SHAPES),
        *((remat, "deep") for remat in ("attention", "none")),
        *(pytest.param(*case, marks=pytest.mark.full) for case in MORE),
    ],
)
def test_within_fifteen_percent_of_what_xla_says(remat, name):
    changes, rows, length, micro, sizes = SHAPES[name]
    config = model.PRESETS["tiny"].replace(**SHAPE, **changes, remat=remat)
    made = plan(config, sizes, rows, length, micro or rows)
    program = RunProgram(config, train.TrainConfig(1, micro=micro))
    batch = {"tokens": jax.ShapeDtypeStruct((rows, length), np.int32)}
    compiled = program.step.lower(program.like, {}, batch, rope.frequencies(rope.RopeSpec(head_dim=64)))
    real = sum(memory.needed(compiled.compile()))
    assert made.total == pytest.approx(real, rel=0.15)
    assert made.bytes["moments"] == 2 * made.bytes["parameters"] + 8  # and two counts of steps


def test_a_mesh_cuts_parameters_and_moments():
    config = model.PRESETS["tiny"].replace(**SHAPE, n_layers=2, n_kv_heads=4, d_ff=688)
    sizes = {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    lm = model.Decoder(config, jax.random.key(0), mesh=make_mesh(**sizes))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(lm.params))
    assert plan(config, sizes, 8, 512).bytes["parameters"] == held


def test_what_is_recomputed_is_counted():
    config = model.PRESETS["llama2-7b"]
    work = {remat: plan(config.replace(remat=remat), ONE, 1, 32_768).flops for remat in POLICIES}
    forward = work["none"] / 3
    assert work["full"] == pytest.approx(work["none"] + forward)
    assert work["dots"] + work["attention"] == pytest.approx(work["none"] + work["full"])
    assert work["none"] < work["dots"] < work["attention"] < work["full"]


def test_the_paper_s_7b_needs_more_than_one_chip():
    config = model.PRESETS["llama2-7b"].replace(dtype="bfloat16", remat="full")
    size = 6_738_415_616
    one = plan(config, ONE, 64, 32_768, chip=chip("a100-80"))
    assert one.fits is False and one.bytes["parameters"] == 4 * size
    many = plan(config, fill(32, fsdp=-1), 64, 32_768, chip=chip("a100-80"))
    assert many.fits and many.seconds == pytest.approx(many.flops / (32 * 312e12 * 0.5))
    assert many.bytes["moments"] == pytest.approx(2 * 4 * size / 32, rel=0.01)
    assert "It fits" in many.verdict and "an estimate" in many.verdict
    adapted = plan(config, ONE, 64, 4096, lora=train.LoraConfig(), chip=chip("a100-80"))
    assert adapted.fits and adapted.bytes["moments"] < 0.02 * one.bytes["moments"]


def test_a_chip_that_is_not_known():
    with pytest.raises(ValueError, match="there is no chip 'abacus'"):
        chip("abacus")


COMPILED = Path(__file__).resolve().parents[2] / "results" / "tpu_compile"
HELD = (
    "llama2-7b_full_v5p-2x2x2_fsdp8_32768",
    "llama2-7b_full_v5p-2x2x4_fsdp4-sequence4_131072",
    "llama2-13b_full_v5p-2x2x4_fsdp16_16384",
    "llama2-7b_lora_v5e-2x4_fsdp8_4096",
    "llama3.1-8b_full_v5p-2x2x2_fsdp4-tensor2_8192",
)


def planned(found):
    config = model.PRESETS[found["shape"]].replace(dtype="bfloat16", remat=found["remat"])
    lora = train.LoraConfig() if found["lora"] else None
    kind = chip(found["slice"].partition(":")[0])
    return plan(config, ONE | found["mesh"], found["rows"], found["length"], found["micro"], lora, kind)


@pytest.mark.parametrize("name", HELD)
def test_within_a_tenth_of_what_the_tpu_s_compiler_says(name):
    found = read_json(COMPILED / f"{name}.json")
    assert found["fits"] and planned(found).fits
    assert planned(found).total == pytest.approx(found["peak_bytes"], rel=0.1)


def test_no_verdict_that_the_tpu_s_compiler_contradicts():
    reports = [read_json(path) for path in sorted(COMPILED.glob("*.json"))]
    assert len(reports) >= 10 and not all(found["fits"] for found in reports)
    assert [found["slice"] for found in reports if planned(found).fits != found["fits"]] == []
