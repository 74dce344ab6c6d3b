"""Devices that have no rows to work on cut time."""

import jax

from resonance_jax.parallel.mesh_for_rows import sizes_for_rows, training_mesh
from resonance_jax.settings import MeshConfig


def test_devices_beyond_the_rows_cut_time():
    sizes = lambda devices, rows, **mesh: tuple(sizes_for_rows(MeshConfig(**mesh), devices, rows).values())
    replicas = {"data": -1, "fsdp": 1}
    assert sizes(2, 8, **replicas) == (2, 1, 1, 1)
    assert sizes(2, 1, **replicas) == (1, 1, 1, 2)
    assert sizes(16, 2, data=2, fsdp=-1, tensor=2) == (2, 1, 2, 4)
    assert sizes(8, 3, data=-1, fsdp=1, sequence=2) == (4, 1, 1, 2)  # as stated: refused later
    assert sizes(128, 64) == (1, 64, 1, 2)


def test_a_single_device_needs_no_mesh(monkeypatch):
    assert training_mesh(MeshConfig(), 16).shape == {"data": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert training_mesh(MeshConfig(), 16) is None
