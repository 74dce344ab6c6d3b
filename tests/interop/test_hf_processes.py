"""Hugging Face directories in processes of their own: memory when loading, and two processes together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import interop, rope
from resonance_jax.model import Decoder, DecoderConfig
from resonance_jax.model.parameters import map_declared

SMALL = DecoderConfig(vocab_size=24, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)
LARGE = DecoderConfig(
    vocab_size=4096, d_model=512, n_layers=10, n_heads=8, n_kv_heads=2, head_dim=64, d_ff=1536
)
ENVIRONMENT = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def save(folder, config, dtype, **options):
    rng = np.random.default_rng(0)
    draw = lambda _, p: jnp.asarray(rng.integers(-64, 64, p.shape, np.int8), dtype)
    lm = Decoder(config, rope=rope.RopeSpec(head_dim=config.head_dim), params=map_declared(draw, config))
    interop.save_hf(lm, folder, **options)
    return lm


MEASURE = """
import re, sys, threading
import jax, jax.numpy as jnp
from resonance_jax import interop
from resonance_jax.parallel.mesh import make_mesh
anonymous = lambda: 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
mesh = make_mesh(fsdp=2, tensor=2) if len(jax.devices()) == 4 else None
jnp.zeros(8).block_until_ready()
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.0005):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
lm = interop.load_hf(sys.argv[1], mesh=mesh)
done.set(); watcher.join()
sizes = [leaf.nbytes for leaf in jax.tree.leaves(lm.params)]
print(sum(sizes), max(sizes), max(peak[0], anonymous()) - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "model"
    save(folder, LARGE, jnp.bfloat16, max_shard_bytes=30_000_000)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@pytest.mark.parametrize("devices", [1, 4])
def test_loading_takes_the_model_and_two_leaves(large, devices):
    environment = ENVIRONMENT | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", MEASURE, str(large)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    model, largest, peak = map(int, result.stdout.split())
    print(f"model {model / 1e6:.0f} MB, largest leaf {largest / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert model > 1e8
    assert 0.9 * model < peak <= model + 2 * largest


TOGETHER = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[3]}", num_processes=2, process_id=int(sys.argv[4]))
from resonance_jax import interop
from resonance_jax.interop import hf_weights
from resonance_jax.parallel.mesh import make_mesh
read, real = [], hf_weights._read
hf_weights._read = lambda *args: read.append(real(*args)) or read[-1]
lm = interop.load_hf(sys.argv[1], mesh=make_mesh(fsdp=2))
size = sum(part.size for part in read)
interop.save_hf(lm, sys.argv[2], max_shard_bytes=4000)
interop.load_hf(sys.argv[2])
print(size)
"""


@pytest.mark.full
def test_two_processes_read_their_own_half_and_save_together(tmp_path):
    lm = save(tmp_path / "in", SMALL, jnp.float32, max_shard_bytes=10_000)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", TOGETHER, str(tmp_path / "in"), str(tmp_path / "out"), str(port)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen([*command, str(i)], env=ENVIRONMENT, **pipes) for i in range(2)]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    norms = lm.params["final_norm"].size * (2 * SMALL.n_layers + 1)  # these lie on every device
    for process, (out, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        assert int(out.splitlines()[-1]) == norms + (lm.count_parameters() - norms) // 2
    chex.assert_trees_all_equal(interop.load_hf(tmp_path / "out").params, lm.params)
