"""What --dtype auto is on each kind of device, and that a kept result states what it was."""

import dataclasses

import pytest

from resonance_jax.command import with_chosen_dtype
from resonance_jax.model import suitable_dtype as dtype
from resonance_jax.model.lowering import lowering_for

AMX = frozenset({"avx512f", "amx_tile", "amx_bf16"})


@pytest.mark.parametrize(
    ("platform", "capability", "name"),
    [
        ("tpu", None, "bfloat16"),
        ("gpu", (9, 0), "bfloat16"),
        ("gpu", None, "float32"),
        ("gpu", (7, 5), "float32"),
    ],
)
def test_an_accelerator_computes_in_bfloat16_if_it_has_it(platform, capability, name):
    with lowering_for(platform, capability):
        found = dtype.suitable_dtype()
    assert found.name == name and found.why


@pytest.mark.parametrize(
    ("flags", "version", "name", "why"),
    [
        (AMX, (0, 12), "bfloat16", "this CPU has AMX; --dtype float32 is exact"),
        (AMX, (0, 10), "float32", "jax uses it from 0.12 on"),
        (AMX - {"amx_bf16"}, (0, 12), "float32", "this CPU has no AMX"),
        (frozenset(), (0, 12), "float32", "this CPU has no AMX"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_amx_and_jax_uses_it(monkeypatch, flags, version, name, why):
    monkeypatch.setattr(dtype, "cpu_flags", lambda: flags)
    monkeypatch.setattr(dtype, "_version", lambda: version)
    found = dtype.suitable_dtype()
    assert found.name == name and why in found.why


def test_the_config_states_what_was_chosen_and_the_command_says_it(monkeypatch, capsys):
    @dataclasses.dataclass(frozen=True)
    class Config:
        dtype: str = "auto"

    monkeypatch.setattr(dtype, "cpu_flags", frozenset)
    assert with_chosen_dtype(Config()).dtype == "float32"
    assert capsys.readouterr().out == "dtype: float32 (auto: this CPU has no AMX)\n"
    assert with_chosen_dtype(Config("bfloat16")).dtype == "bfloat16" and not capsys.readouterr().out


def test_the_flags_of_this_machine(monkeypatch):
    if dtype.platform.system() == "Linux" and dtype.platform.machine() == "x86_64":
        assert "fpu" in dtype.cpu_flags()
    monkeypatch.setattr(dtype.platform, "system", lambda: "Darwin")
    assert dtype.cpu_flags() == frozenset()
