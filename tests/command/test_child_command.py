"""A command in a process of its own: its exit code, and signals that reach it once and end both."""

import signal
import subprocess
import sys

from resonance_jax.command import run_command
from resonance_jax.command.child_command import STOPPED

CHILD = """
import signal, sys, time
def save(number, frame):
    print("saved", number, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
print("ready", flush=True)
time.sleep(60)
"""
PARENT = f"""
import sys
from resonance_jax.command import run_command
code = run_command([sys.executable, "-c", {CHILD!r}])
print("ended with", code, flush=True)
"""


def test_its_exit_code_is_given_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    assert run_command([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_handed_on_once_and_waited_for():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == f"saved {int(signal.SIGINT)}\nended with {STOPPED}\n"
