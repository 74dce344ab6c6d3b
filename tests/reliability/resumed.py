"""Commands that are killed at random moments and run again until they end.

Each is small, and its result files are those that must come out the same however often it was stopped.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fast_compile import FAST_COMPILE

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "interrupted; run the same command again to go on."
SAVED = "again to go on"
VARIES = ("seconds", "wall_seconds", "run_steps_per_second", "tokens_per_second", "date", "took")
"""Fields that say how long it took, not what came out."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line, with INPUTS for the folder of inputs and OUT for that of results.

    results: glob patterns of the files in OUT that are compared.
    """

    line: str
    results: tuple[str, ...]

    def start(self, inputs: Path, out: Path, *more: str, **variables: str) -> subprocess.Popen:
        """The running command, in a folder of its own. more: words that are added to it."""
        words = self.line.replace("INPUTS", str(inputs)).replace("OUT", str(out)).split()
        own = {"XLA_FLAGS": FAST_COMPILE, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
        environment = {**os.environ, **own, **variables}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", *words, *more], cwd=ROOT, env=environment, **streams)

    def figures(self, out: Path) -> dict[str, object]:
        """What is compared: JSON without how long it took, everything else byte for byte."""
        files = sorted({file for pattern in self.results for file in out.glob(pattern) if file.is_file()})
        assert files, f"no result in {out}"
        return {str(file.relative_to(out)): _content(file, out) for file in files}


def _content(file: Path, out: Path) -> object:
    if file.suffix != ".json":
        return file.read_bytes()
    return _timeless(json.loads(file.read_text().replace(str(out), "OUT")))


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in VARIES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, what it said on stderr)."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def killed(
    command: Command, inputs: Path, out: Path, number: signal.Signals, after: float
) -> tuple[str, str | None]:
    """Kill a command some seconds after its start; returns how that went, and what was wrong with it.

    Before Python runs the first line of ours, a signal ends it as it ends any Python; the exit code says so.
    """
    process = command.start(inputs, out)
    time.sleep(after)
    process.send_signal(number)
    code, said = finish(process)
    if number == signal.SIGKILL or code in (0, 3):
        return ("in time" if code == -number else "too late"), None
    lines = [line for line in said.splitlines() if SAVED in line]
    if code == 130 and len(lines) == 1 and "Traceback" not in said:
        return "in time", None
    before_ours = code == -number or (code == 1 and "KeyboardInterrupt" in said and "resonance" not in said)
    return ("too early", None) if before_ours else ("in time", f"exit {code}: {said[-600:]}")


def moment(rng: random.Random, whole: float) -> float:
    """When to kill a command that takes `whole` seconds: at any time but the interpreter's own start."""
    return 0.3 + rng.random() * max(0.5, whole - 0.5)
