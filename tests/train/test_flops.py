"""What a step computes, counted by hand, and the peaks of chips by the names that jax gives them."""

import pytest

from resonance_jax import model, train
from resonance_jax.train.flops import mfu, peak, per_token
from resonance_jax.train.plan import CHIPS, plan

SEVEN_B = model.PRESETS["llama2-7b"]
MULTIPLIED = 6_738_415_616 - 32_000 * 4096  # all weights but the embedding, which is only looked up
ATTENTION = 6 * 32 * 4096 * 4096


def test_flops_of_the_paper_s_7b():
    assert per_token(SEVEN_B, 4096) == 6 * MULTIPLIED + ATTENTION
    assert mfu(SEVEN_B, 4096, 1000.0, 1, "cpu") is None
    share = mfu(SEVEN_B, 4096, 1e4, 2, "NVIDIA H200")
    assert share == pytest.approx(1e4 * per_token(SEVEN_B, 4096) / (2 * 989e12))


def test_frozen_weights_have_no_gradient_of_their_own():
    """Rank 16 on all linear layers of the 7B: PEFT counts 39,976,960 trainable parameters."""
    lora = train.LoraConfig(rank=16)
    assert per_token(SEVEN_B, 4096, lora) == 4 * MULTIPLIED + 6 * 39_976_960 + ATTENTION
    norms = 65 * 4096
    with_norms = per_token(SEVEN_B, 4096, train.LoraConfig(rank=16, norms=True))
    assert with_norms - per_token(SEVEN_B, 4096, lora) == 2 * norms
    # The plan's time follows, and so does the share of the peak.
    one = dict.fromkeys(("data", "fsdp", "tensor", "sequence"), 1)
    shape = SEVEN_B.replace(remat="none")
    assert plan(shape, one, 1, 4096, lora=lora).flops == 4096 * per_token(SEVEN_B, 4096, lora)
    recomputed = plan(shape.replace(remat="full"), one, 1, 4096, lora=lora).flops / 4096
    forward = 2 * (MULTIPLIED + 39_976_960) + ATTENTION / 3
    assert recomputed == pytest.approx(per_token(SEVEN_B, 4096, lora) + forward)
    assert mfu(SEVEN_B, 4096, 1e4, 1, "TPU v4", lora) < mfu(SEVEN_B, 4096, 1e4, 1, "TPU v4")


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L4000", None),
        ("NVIDIA RTX A100X", None),
        ("cpu", None),
    ],
)
def test_a_chip_is_known_by_its_whole_name(kind, tflops):
    assert peak(kind) == (None if tflops is None else tflops * 1e12)


def test_chips_that_are_planned_for_have_a_peak():
    assert all(peak(kind) for kind, _ in CHIPS.values())


def test_every_layer_meets_its_own_window():
    """Of two windows each counts in its own layers; what a plan says follows."""
    mixed = SEVEN_B.replace(layer_types=(model.LayerType("sliding_attention", 512), model.LayerType()))
    mean = (per_token(SEVEN_B.replace(window=512), 4096) + per_token(SEVEN_B, 4096)) / 2
    assert per_token(mixed, 4096) == pytest.approx(mean) and mean < per_token(SEVEN_B, 4096)
    one = dict.fromkeys(("data", "fsdp", "tensor", "sequence"), 1)
    assert plan(mixed.replace(remat="none"), one, 1, 4096).flops == 4096 * per_token(mixed, 4096)
