"""Scoring, decoding, passkey and L-Eval on a mesh that spans two processes, which Slurm's variables join."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from resonance_jax.parallel import distributed
from tests.evaluate.spanning import figures
from tests.fast_compile import FAST_COMPILE

CHILD = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from resonance_jax.parallel import distributed
print(distributed.launcher(), distributed.start())
from tests.evaluate.spanning import figures
print(json.dumps(figures(sys.argv[1])))
"""


def slurm(number: int, port: int) -> dict[str, str]:
    """What srun tells the second of two tasks, or the first."""
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


def test_two_processes_that_share_no_disk(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k not in distributed.VARIABLES}
    environment |= {"XLA_FLAGS": FAST_COMPILE, "JAX_PLATFORMS": "cpu"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folders = [tmp_path / "first", tmp_path / "second"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder)],
            cwd=Path(__file__).resolve().parents[2],
            env=environment | slurm(number, port),
            **pipes,
        )
        for number, folder in enumerate(folders)
    ]
    alone = json.loads(json.dumps(figures(str(tmp_path / "alone"), jax.devices()[:4])))
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
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
    # One writer: what the first process kept, the second was told.
    assert len(list(folders[0].glob("*.npz"))) == 5 and not folders[1].exists()
