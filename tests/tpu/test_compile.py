"""The TPU's own compiler, without a TPU: what its peak means, and --compile as its user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from configs.finetune import PRESETS
from resonance_jax import rope, train
from resonance_jax.files import read_json
from resonance_jax.model import PRESETS as PRESETS_OF_SHAPES
from resonance_jax.parallel import topology
from resonance_jax.parallel.compiled import Compiled, compile_for
from resonance_jax.parallel.mesh import make_mesh
from resonance_jax.train.compiled_step import compile_step

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        not topology.has_compiler(), reason="libtpu is not installed: make test-tpu installs it"
    ),
]
GIB = 2**30
SLICES = {"7b": "v5p:2x2x2", "13b": "v5p:2x2x4"}
"""Where each of the paper's models fits, by the first part of a preset's name."""


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """experiments.finetune in a process of its own, without the tests' XLA flags."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    words = [sys.executable, "-m", "experiments.finetune", *arguments, "--run-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    return done.returncode, done.stdout, done.stderr


def three_times(gib: float) -> Compiled:
    """A program on v5e that holds its argument, a temporary and its result at once, each of so many GiB."""
    where = SingleDeviceSharding(topology.absent_devices("v5e:2x2")[0])
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)
    fn = jax.jit(lambda x, w: jnp.cos(jnp.sin(x) @ w) @ w)
    return compile_for(fn.lower(like(int(gib * GIB / 2 / 1024), 1024), like(1024, 1024)), 0.0)


def test_the_peak_is_what_the_compiler_compares_with_the_chip():
    """Of the same program the peak, where it fits, and the size in the refusal, where it does not."""
    small, large = three_times(0.5), three_times(5.5)
    assert small.fits and small.peak_bytes == pytest.approx(3 * 0.5 * GIB, rel=0.01)
    assert not large.fits and large.peak_bytes == pytest.approx(3 * 5.5 * GIB, rel=0.01)
    assert large.capacity == pytest.approx(15.75 * GIB) and "15.75G" in large.verdict


def test_a_small_step_compiles_with_the_splash_kernel(tmp_path):
    """The cpu preset's model on four chips of v5e: sharded, in micro-batches, through Mosaic."""
    words = ["cpu", "--from-scratch", "None", "--dtype", "bfloat16", "--remat", "full", "--length", "2048"]
    words += ["--batch-size", "4", "--micro", "2", "--data", "1", "--fsdp", "2", "--sequence", "2"]
    code, out, err = command(tmp_path / "run", *words, "--compile", "v5e:2x2")
    assert code == 0, err
    report = read_json(tmp_path / "run" / "tpu_compile.json")
    assert report["fits"] and report["devices"] == 4 and report["mesh"]["sequence"] == 2
    assert report["attention"] == "splash" and "splash_mha_dq_no_residuals" in report["kernels"]
    assert 0 < report["peak_bytes"] <= report["arguments"] + report["outputs"] + report["temporaries"]
    assert report["unknown_loops"] == 0 and report["flops"] > 0
    assert {row["kind"] for row in report["collectives"]} >= {"all-gather", "all-reduce"}
    # A gather for each of two micro-batches and two layers at least.
    assert sum(row["count"] for row in report["collectives"] if row["kind"] == "all-gather") >= 4
    assert any(name.startswith("bf16 x bf16") for name in report["products"])
    assert "It fits" in out and "splash" in out
    assert "no TPU" not in err and not (tmp_path / "run" / "finetune.json").exists()


def test_float32_is_multiplied_as_float32_by_the_splash_kernel_too(tmp_path):
    words = [
        "cpu",
        "--from-scratch",
        "None",
        "--length",
        "2048",
        "--batch-size",
        "4",
        "--data",
        "1",
        "--fsdp",
        "4",
    ]
    code, _, err = command(tmp_path / "run", *words, "--compile", "v5e:2x2")
    assert code == 0, err
    report = read_json(tmp_path / "run" / "tpu_compile.json")
    assert list(report["products"]) == ["f32 x f32 -> f32, HIGHEST"] and report["attention"] == "splash"


def compiled(layers: int, slices: int = 1, **mesh: int) -> Compiled:
    """A step of a small decoder over slices of four chips of v5p, in two micro-batches."""
    shape = dict(d_model=256, n_heads=2, n_kv_heads=2, head_dim=128, d_ff=512, dtype="bfloat16", remat="full")
    devices = topology.absent_devices("v5p:2x2x1", slices)
    return compile_step(
        PRESETS_OF_SHAPES["tiny"].replace(n_layers=layers, **shape),
        train.TrainConfig(1, micro=4 * slices),
        make_mesh(devices=devices, **mesh),
        8 * slices,
        1024,
        rope.frequencies(rope.RopeSpec(head_dim=128), length=1024),
    )


def test_a_mesh_may_go_over_parts_of_a_slice_s_sides():
    for name, slices, sizes in (("v6e:4x4", 1, (1, 8, 2, 1)), ("v6e:4x4", 2, (2, 8, 2, 1))):
        devices = topology.absent_devices(name, slices)
        mesh = make_mesh(*sizes, devices=devices)
        assert mesh.devices.shape == sizes and set(mesh.devices.flat) == set(devices)


def test_deeper_decoders_are_as_long_programs():
    shallow, deep = compiled(4, fsdp=4), compiled(16, fsdp=4)
    assert deep.instructions == pytest.approx(shallow.instructions, rel=0.02)


def test_over_two_slices_only_gradients_are_sent():
    """The axis data lies across them: what fsdp gathers and scatters stays within a slice, by the groups of
    the collectives, and each device sends its part of the gradients for each micro-batch."""
    both = compiled(4, slices=2, data=2, fsdp=4)
    across = [row for row in both.collectives if row["across"]]
    within = {row["kind"] for row in both.collectives if row["across"] is False}
    assert across and {row["kind"] for row in across} == {"all-reduce"}
    assert {"all-gather"} <= within and not [r for r in both.collectives if r["across"] is None]
    # Its part of the state is parameters and two moments, all float32; of two micro-batches the gradients are
    # sent in bfloat16, those of the embedding and the head in float32.
    assert both.arguments is not None
    assert both.arguments / 3 < sum(row["bytes"] for row in across) < 2 * both.arguments / 3


@pytest.mark.full
@pytest.mark.parametrize("preset", [name for name in PRESETS if name.partition("-")[0] in SLICES])
def test_every_preset_compiles_for_a_slice(tmp_path, preset):
    code, out, err = command(tmp_path / "run", preset, "--compile", SLICES[preset.partition("-")[0]])
    assert code == 0, out + err
    report = read_json(tmp_path / "run" / "tpu_compile.json")
    assert report["attention"] == "splash"
    assert report["plan_bytes"] == pytest.approx(report["peak_bytes"], rel=0.1)
