"""The search against brute force on the plan, and the paper's eight settings on slices that have a name."""

import itertools

import numpy as np
import pytest

from configs.finetune import PRESETS
from resonance_jax import model, train
from resonance_jax.parallel.topology import chip_of, slice_named
from resonance_jax.train.plan import USABLE, chip, plan
from resonance_jax.train.plan_search import REMAT, Search, meshes, search, settings
from tests.train import small

CONFIG = small.CONFIG.replace(n_kv_heads=2)
ROWS, LENGTH, DEVICES = 8, 64, 4


def every_setting():
    """(key of preference, bytes, what it is) of every setting, by definition, sorted."""
    found = []
    sizes = (1, 2, 4)
    for data, fsdp, tensor, sequence in itertools.product(sizes, repeat=4):
        shards = data * fsdp
        if shards * tensor * sequence != DEVICES or tensor > CONFIG.n_kv_heads:
            continue
        mesh = {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}
        for remat, micro in itertools.product(REMAT, (1, 2, 4, 8)):
            if micro % shards:
                continue
            made = plan(CONFIG.replace(remat=remat), mesh, ROWS, LENGTH, micro, chip=("TPU v4", None))
            key = tensor, sequence, data, made.flops, -micro
            found.append((key, made.total, (mesh, micro, remat)))
    return sorted(found, key=lambda one: one[0])


def searched(capacity) -> Search:
    return search(settings(CONFIG, DEVICES, ROWS, LENGTH, chip=("TPU v4", capacity)))


def test_it_finds_what_brute_force_finds():
    every, answers = every_setting(), set()
    totals = [total for _, total, _ in every]
    for share in (0.02, 0.1, 0.3, 0.6):
        capacity = int(np.quantile(totals, share) / USABLE) + 1
        best = next(what for _, total, what in every if total <= USABLE * capacity)
        found = searched(capacity)
        assert (found.chosen.mesh, found.chosen.micro, found.chosen.remat) == best
        answers.add(str(best))
        assert all(setting.plan.total > setting.plan.capacity for setting, _ in found.refused)
    assert len(answers) >= 3


def test_where_nothing_fits_it_says_how_little_is_needed():
    found = searched(1000)
    assert found.chosen is None
    assert len(found.refused) == len(list(settings(CONFIG, DEVICES, ROWS, LENGTH, chip=("TPU v4", 1))))
    rows = found.rows()
    assert [row["mesh"] for row in rows[:2]] == ["fsdp 4", "data 2 x fsdp 2"]
    assert all(row["verdict"].endswith("of 0 MiB") for row in rows)


def test_the_compiler_has_the_last_word_a_few_times():
    plenty = ("TPU v4", 2**34)
    asked = []

    def compiled(setting):
        asked.append((setting.micro, setting.remat))
        return "no" if len(asked) < 3 else None

    found = search(settings(CONFIG, DEVICES, ROWS, LENGTH, chip=plenty), compiled)
    assert asked == [(8, "none"), (4, "none"), (8, "dots")] and found.chosen.micro == 8
    assert [why for _, why in found.refused] == ["the compiler: no"] * 2
    assert found.rows()[0]["verdict"] == "fits" and len(found.rows()) == 2
    refused = search(settings(CONFIG, DEVICES, ROWS, LENGTH, chip=plenty), lambda _: "no", tries=2)
    assert refused.chosen is None and len(refused.refused) == 2


def test_a_chip_of_unknown_memory_is_refused():
    with pytest.raises(ValueError, match="give --chip by name"):
        search(settings(CONFIG, 1, ROWS, LENGTH))


def test_few_rows_cut_time():
    assert meshes(4, 2, LENGTH, CONFIG)[0] == {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 2}
    assert meshes(4, 1, 3, CONFIG) == []  # neither rows, nor time, nor the one head that keys have


def test_slices_by_their_chips():
    assert slice_named("v6e", 16) == "v6e:4x4" and slice_named("v5p", 8) == "v5p:2x2x2"
    assert slice_named("v5p", 6) is None and slice_named("h100", 8) is None
    assert chip_of(slice_named("v4", 64)) == "v4"


PAPER = {
    "7b": {"v5e": 64, "v5p": 8, "v6e": 16},
    "13b": {"v5p": 16, "v6e": 32},
}
"""Chips on which each of the paper's settings of that size fits."""


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, chips in PAPER.items() for name in chips])
def test_the_paper_s_settings_fit_a_slice(size, name):
    devices = PAPER[size][name]
    assert slice_named(name, devices) is not None
    presets = [config for preset, (_, config) in PRESETS.items() if preset.startswith(f"{size}-")]
    assert len(presets) == 4
    for config in presets:
        decoder = model.PRESETS[config.shape].replace(dtype=config.dtype)
        asked = decoder, devices, config.batch_size, config.length
        chosen = search(settings(*asked, chip=chip(name))).chosen
        assert chosen is not None and chosen.plan.fits
        assert chosen.mesh["data"] * chosen.mesh["fsdp"] * chosen.mesh["sequence"] == devices
        one = plan(
            decoder.replace(remat=chosen.remat), chosen.mesh, *asked[2:], chosen.micro, chip=chip(name)
        )
        assert one.total == chosen.plan.total


def test_adapters_are_searched_too():
    decoder = model.PRESETS["llama2-7b"].replace(dtype="bfloat16")
    found = [search(settings(decoder, 8, 64, 4096, lora, chip("v5p"))) for lora in (None, train.LoraConfig())]
    assert found[1].chosen.plan.bytes["moments"] < 0.05 * found[0].chosen.plan.bytes["moments"]
