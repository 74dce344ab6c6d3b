"""NLL of one long document under SmolLM2-135M: time and memory as its length doubles.

    .venv/bin/python benchmarks/long_documents.py [--lengths 16384 32768 65536]

float32, each length in a process of its own; the memory includes loading, the time includes compiling
(some ten seconds).
Targets: at most 2.1 times the memory and 4 times the seconds a doubling, judged from 16,384 to 65,536;
131,072 tokens in 6 GB (about 107 minutes on two cores: asked for by name). Lengths that this commit measured
stand in the file already and are not measured again.

Writes results/speed/long-documents_<processor>.json after each; exits with 1 when a target is missed.
"""

import argparse
import json
import subprocess
import sys
import time

from beside import SPEED, anonymous_peak, machine, make_of_processor, write

LENGTHS = [16_384, 32_768, 65_536]
NAME = "long-documents"


def measure(length):
    """Seconds of the compiled forward with its NLL, and this process's peak of anonymous memory in GB."""
    from smollm2 import ours, text

    with anonymous_peak() as peak:
        nll = ours()[1]
        nll(text(1024))  # what is set up once
        tokens = text(length)
        start = time.perf_counter()
        each = nll(tokens)
        seconds = time.perf_counter() - start
    return {
        "tokens": length,
        "seconds": seconds,
        "peak_anonymous_gb": peak[0],
        "mean_nll": float(each.astype("float64").mean()),
    }


def kept(result):
    """The rows that this commit and these versions measured on this make of processor."""
    path = SPEED / f"{NAME}_{make_of_processor()}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(key) == result[key] for key in ("commit", "versions", "cpu"))
    return before.get("rows", []) if same else []


def doublings(rows):
    """By what time and memory grow from each length to the next, for lengths that double."""
    rows = {row["tokens"]: row for row in rows}
    return [
        {
            "to": 2 * length,
            "seconds": rows[2 * length]["seconds"] / row["seconds"],
            "memory": rows[2 * length]["peak_anonymous_gb"] / row["peak_anonymous_gb"],
        }
        for length, row in sorted(rows.items())
        if 2 * length in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(measure(asked.alone)))
        return 0
    result = machine()
    rows = kept(result)
    for length in sorted(set(asked.lengths) - {row["tokens"] for row in rows}):
        command = [sys.executable, sys.argv[0], "--alone", str(length)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows = sorted([*rows, json.loads(printed.splitlines()[-1])], key=lambda row: row["tokens"])
        print(rows[-1], flush=True)
        write(NAME, {**result, "rows": rows, "doublings": doublings(rows)})
    judged = [one for one in doublings(rows) if one["to"] <= 65_536]
    good = all(one["seconds"] <= 4 and one["memory"] <= 2.1 for one in judged)
    return 0 if good and all(row["peak_anonymous_gb"] <= 6 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
