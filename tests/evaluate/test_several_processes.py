"""Scoring, decoding, passkey and L-Eval on a mesh that spans processes, which Slurm's variables join."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from resonance_jax.parallel import distributed
from tests.evaluate.spanning import figures
from tests.fast_compile import FAST_COMPILE

CHILD = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from resonance_jax.parallel import distributed
print(distributed.launcher(), distributed.start())
from tests.evaluate.spanning import figures
print(json.dumps(figures(sys.argv[1])))
"""


def slurm(number: int, count: int, port: int) -> dict[str, str]:
    """What srun tells a task."""
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_processes_that_share_no_disk(tmp_path, count):
    """Four devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k not in distributed.VARIABLES}
    environment |= {"XLA_FLAGS": FAST_COMPILE, "JAX_PLATFORMS": "cpu"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folders = [tmp_path / str(number) for number in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(4 // count)],
            cwd=Path(__file__).resolve().parents[2],
            env=environment | slurm(number, count, port),
            **pipes,
        )
        for number, folder in enumerate(folders)
    ]
    alone = json.loads(json.dumps(figures(str(tmp_path / "alone"), jax.devices()[:4])))
    try:
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, (process, (out, errors)) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, errors
        joined, told = (line for line in out.splitlines() if not line.startswith("[Gloo]"))
        assert joined == f"Slurm {number}"
        found = json.loads(told)
        np.testing.assert_allclose(found["scored"], alone["scored"], rtol=1e-5)
        assert found["kept"] == found["scored"] and found["journal"] == [True]
        assert {name: found[name] for name in ("said", "keys", "answers")} == {
            name: alone[name] for name in ("said", "keys", "answers")
        }
    # One writer: what the first process kept, the others were told.
    assert len(list(folders[0].glob("*.npz"))) == 5
    assert not any(folder.exists() for folder in folders[1:])
