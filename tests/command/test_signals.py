"""Ctrl-C and SIGTERM end a command with 130 and one line, from its first line on."""

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "interrupted; run the same command again to go on."
COMPUTING = """
from resonance_jax.command import leave_on_signals
leave_on_signals()
import gc, jax, jax.numpy as jnp
gc.callbacks.append(lambda *_: None)
forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: (x < 2).all(), lambda x: jnp.cos(x @ x) * 0.5, x))
print("ready", flush=True)
forever(jnp.ones((200, 200))).block_until_ready()
"""


def interrupted(process: subprocess.Popen, number: int) -> tuple[int, str, float]:
    """(exit code, stderr, seconds that it took)."""
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_computation_that_never_returns_is_left_at_once(number):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", COMPUTING], **streams)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    code, said, seconds = interrupted(process, number)
    assert (code, said.strip()) == (130, SENTENCE)
    assert seconds < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lines", [1, 40, 90])
def test_while_a_command_is_being_imported(number, lines):
    """Python tells every import on stderr: the signal comes after so many of them.

    A pipe of a page and reads without a buffer keep the process from running ahead.
    """
    command = [sys.executable, "-v", "-m", "experiments.perplexity", "--help"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0, cwd=ROOT
    )
    stderr = process.stderr
    assert stderr is not None
    fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, 4096)
    while b"import 'experiments'" not in stderr.readline():  # until our own package has run
        pass
    for _ in range(lines):
        stderr.readline()
    process.send_signal(number)
    said = stderr.read().decode()
    assert process.wait(timeout=60) == 130
    assert said.count(SENTENCE) == 1 and "Traceback" not in said
