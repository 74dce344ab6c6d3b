"""Two processes on one machine are one run: same losses, own rows only, each other's checkpoints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resonance_jax.parallel import distributed
from tests.fast_compile import FAST_COMPILE

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import sys, time
import jax
jax.config.update("jax_num_cpu_devices", 4 // int(sys.argv[2]))
from resonance_jax.parallel import distributed
from resonance_jax.parallel.mesh import make_mesh
number = distributed.start()
from resonance_jax import model, train
from tests.train.small import CONFIG, ENCODINGS, OPTIMIZER, batches

class Rows:
    batch_size, length = 8, 16
    read = set()
    def rows(self, step, start, stop):
        self.read |= set(range(start, stop))
        time.sleep(float(sys.argv[4]))
        return batches(step, 8)["tokens"][start:stop]

lm = model.Decoder(CONFIG, jax.random.key(0), mesh=make_mesh(data=2, fsdp=2))
every = 0.0 if sys.argv[3] == "often" else 1e9
config = train.TrainConfig(12, OPTIMIZER, steps_per_call=1, save_seconds=every)
try:
    train.fit(lm, Rows(), ENCODINGS[1], config, sys.argv[1])
except train.Interrupted as error:
    print(error)
    sys.exit(130)
print(sorted(Rows.read))
"""


def run(folder: Path, count: int, save: str = "often", pause: float = 0.0) -> list[subprocess.Popen]:
    return together(CHILD, [(str(folder), str(count), save, str(pause))] * count)


def together(program: str, arguments: list[tuple[str, ...]]) -> list[subprocess.Popen]:
    """One process for each list of arguments, joined to one run if there are several."""
    environment = {**os.environ, "XLA_FLAGS": FAST_COMPILE}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes, count = [], len(arguments)
    for number, words in enumerate(arguments):
        values = (f"localhost:{port}", str(count), str(number))
        own = dict(zip(distributed.VARIABLES, values, strict=True)) if count > 1 else {}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        command = [sys.executable, "-c", program, *words]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment | own, **pipes))
    return processes


SEPARATE = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
from resonance_jax.parallel import distributed
distributed.start()
from pathlib import Path
def refuse():
    raise ValueError("the first process refuses")
for call in (lambda: distributed.of_first(refuse), lambda: distributed.check_shared(Path(sys.argv[1]))):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def finish(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == code, errors
    return [out.strip().splitlines()[-1] for out, _ in outputs]


def stop_after(processes: list[subprocess.Popen], folder: Path, steps: int) -> None:
    """SIGTERM to the last process alone; all of them stop at the same step."""
    while len(losses(folder)) < steps and processes[0].poll() is None:
        time.sleep(0.01)
    processes[-1].send_signal(signal.SIGTERM)


def losses(folder: Path) -> np.ndarray:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return np.asarray([json.loads(line)["loss"] for line in lines])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    finish(run(folder, 1))
    return losses(folder)


@pytest.mark.parametrize(("first", "second"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.full)])
def test_what_one_number_of_processes_wrote_another_goes_on_with(alone, tmp_path, first, second):
    """SIGTERM after four steps, then the rest on the other number of processes."""
    processes = run(tmp_path, first, "seldom", pause=0.05)
    stop_after(processes, tmp_path, 4)
    messages = finish(processes, code=130)
    assert len(set(messages)) == 1 and "run the same again" in messages[0]
    stopped = len(losses(tmp_path))
    assert 4 <= stopped < 12
    rows = finish(run(tmp_path, second))
    # A process reads the rows of its own devices only.
    assert rows == [str(list(range(n * 8 // second, (n + 1) * 8 // second))) for n in range(second)]
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)


def test_processes_with_disks_of_their_own(tmp_path):
    """What the first one refuses all refuse, and none waits; a folder that they write to together is one."""
    processes = together(SEPARATE, [(str(tmp_path / name),) for name in ("first", "second")])
    outputs = [process.communicate(timeout=200) for process in processes]
    for name, process, (out, errors) in zip(("first", "second"), processes, outputs, strict=True):
        assert process.returncode == 0, errors
        refused, separate = (line for line in out.splitlines() if not line.startswith("[Gloo]"))
        assert refused == "the first process refuses"
        assert f"{tmp_path / name} is not the same on all 2 processes" in separate
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_mistakes(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert distributed.start() == 0
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID is missing"):
        distributed.start("localhost:1234")
    with pytest.raises(ValueError, match="there is no process 2 of 2"):
        distributed.start("localhost:1234", 2, 2)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="expected two whole numbers"):
        distributed.start("localhost:1234", process=0)


def test_what_launchers_say(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    assert distributed.launcher() is None
    tasks = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    assert distributed.launcher() is None  # it does not say how many
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert distributed.launcher() is None  # there is nobody to join
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert distributed.launcher() == "Slurm"
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # a batch script, which srun did not start
    assert distributed.launcher() is None
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    assert distributed.launcher() is None  # mpirun gives its own address too
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1.0;tcp://10.0.0.1:34911")
    assert distributed.launcher() == "Open MPI"
