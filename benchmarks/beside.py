"""How the benchmarks take their figures: interleaved repeats in one process, ratios round by round.

Not a benchmark itself; the scripts beside it import it.
"""

import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

THREADS = 2
MIB = 2**20
RESULTS = Path(__file__).resolve().parent.parent / "results"
SPEED = RESULTS / "speed"


def interleaved(contestants, repeats, warm=True, given=None):
    """Seconds of each contestant, repeat by repeat in turn, after one run to warm up: {name: [seconds]}.

    given: {name: what makes the argument of its next run}, which is not timed; by default a run takes none.
    """
    arguments = lambda name: () if given is None else (given[name](),)
    for name, run in contestants.items() if warm else ():
        run(*arguments(name))
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            argument = arguments(name)
            time.sleep(0.05)  # PyTorch's threads spin a while after their work, and would slow the next one
            start = time.perf_counter()
            run(*argument)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds, name, opponent):
    """Median over the rounds of one contestant's time relative to another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[opponent], strict=True))


def against_best(seconds, ours, opponents):
    """Our time over the fastest opponent's (by its median), round by round, and which opponent that was."""
    middle = medians(seconds)
    best = min(opponents, key=middle.__getitem__)
    return {"ratio": ratio(seconds, ours, best), "opponent": best}


def medians(seconds):
    return {name: statistics.median(values) for name, values in seconds.items()}


def make_of_processor():
    """The processor's maker and family, as a file's name: amd-epyc, intel-xeon."""
    from resonance_jax.report.provenance import processor

    words = re.findall(r"[a-z]+", re.sub(r"\(.*?\)", " ", processor().lower()))
    return "-".join(words[:2])


def write(name, result):
    """Keep a benchmark's result, one file a make of processor, which README's table is made from."""
    from resonance_jax.files import write_json

    path = SPEED / f"{name}_{make_of_processor()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"written to {path}")


def machine():
    """Where, from which commit and with what this ran."""
    import jax

    from resonance_jax.report.provenance import processor

    # Where data lies on one machine says nothing on another.
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    installed = {}
    for name in ("jax", "jaxlib", "numpy", "torch", "transformers"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = None
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given]),
        "commit": commit.stdout.strip(),
        "device": jax.devices()[0].device_kind,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "torch_threads": THREADS,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": installed,
    }


def alone(what):
    """Run `what` in a fresh process (this script with its name) and read what `report_alone` printed."""
    command = [sys.executable, sys.argv[0], what]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    kind, seconds, peak = out.split()[-3:]
    return {"what": kind, "seconds": float(seconds), "peak_anonymous_gb": float(peak)}


def report_alone(what, task):
    """Run the task; print its name, seconds and the peak of this process's anonymous memory in GB."""
    with anonymous_peak() as peak:
        start = time.perf_counter()
        task()
        seconds = time.perf_counter() - start
    print(what, f"{seconds:.1f}", f"{peak[0]:.2f}")


@contextlib.contextmanager
def anonymous_peak():
    """A list of one number: the most anonymous memory, in GB, that this process has had in the block."""
    peak, done = [anonymous_gb()], threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_gb())

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield peak
    finally:
        done.set()


def anonymous_gb():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1e6
