"""README's table of speed and memory, made from the files that the benchmarks wrote.

    python benchmarks/table.py            # rewrite it
    python benchmarks/table.py --check    # exit with 1 where README says something else

results/speed/ holds one file a benchmark and make of processor. A row shows our time over the fastest of
PyTorch's ways (eager, compiled, another precision or cache), one column a make; a figure that no file holds
cannot stand in the table. Standard library only: the tests read it too.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEED = ROOT / "results" / "speed"
NONE = "-"
BEGIN, END = "<!-- speed: made by benchmarks/table.py -->\n", "<!-- end of speed -->\n"


@dataclass(frozen=True)
class Row:
    """One line: which benchmark, what was done, and where its file holds the figure.

    At `path` stands {"ratio", "opponent"}, our time over theirs; or with `unit` a number of that unit.
    """

    benchmark: str
    what: str
    path: tuple
    unit: str = ""


ROWS = [
    Row("rope", "exact cos and sin, 32,768 positions x 64 pairs", ("table", "exact")),
    Row(
        "attention",
        "causal attention, forward and backward, T = 4,096, 4 heads of 64",
        ("attention", 0, "best"),
    ),
    Row("attention", "the same, 8 heads over 2 of keys", ("attention", 1, "best")),
    Row("attention", "linear cross entropy, V = 32,000, forward and backward", ("loss", 1, "best")),
    Row("perplexity", "a 2,048-token forward with NLL, 50M LLaMA", ("transformers", "forward_2048", "best")),
    Row("perplexity", "its perplexity at 512, 1,024 … 8,192", ("transformers", "sweep_16_lengths", "best")),
    Row("smollm2", "a 4,096-token forward with NLL, SmolLM2-135M", ("forward", "float32")),
    Row("smollm2", "the same, their bfloat16 too", ("forward", "best")),
    Row("smollm2_long", "the same forward of 16,384 tokens", ("forward", "float32")),
    Row("smollm2_long", "the same, their bfloat16 too", ("forward", "best")),
    Row("decode", "a token after a prompt of 4,096, SmolLM2-135M", ("batches", 0, "best")),
    Row("decode", "the same, 8 rows at once", ("batches", 1, "best")),
    Row("prefix", "L-Eval's questions about one document, 8K: shared against one by one (ours)", ("best",)),
    Row("posgen", "a training step of PosGen, 128 x 64 tokens, width 64, dropout 0.1", ("speed", 0, "best")),
    Row("posgen", "the same, width 512", ("speed", 2, "best")),
    Row("finetune", "a fine-tuning step of a 50M LLaMA, 8 x 512", ("speed", 0, "best")),
    Row("finetune", "the same, 1 x 4,096", ("speed", 1, "best")),
    Row("loop", "PosGen's training loop over its bare steps (ours), width 64", ("loops", 0, "best")),
    Row(
        "attention",
        "attention's temporaries at T = 16,384",
        ("attention_memory", 2, "temporaries_mib"),
        "MiB",
    ),
    Row(
        "perplexity_long",
        "memory of NLL over 32,768 tokens, 50M LLaMA",
        ("fresh_process", 0, "peak_anonymous_gb"),
        "GB",
    ),
    Row("smollm2_long", "the same, SmolLM2-135M", ("fresh_process", "peak_anonymous_gb"), "GB"),
    Row(
        "finetune_long",
        "memory of a training step of 16,384 tokens, 50M LLaMA",
        ("fresh_process", 0, "peak_anonymous_gb"),
        "GB",
    ),
]


def results(folder=SPEED):
    """{benchmark: {make of processor: what its file holds}}."""
    found = {}
    for path in sorted(folder.glob("*_*.json")):
        benchmark, _, make = path.stem.rpartition("_")
        found.setdefault(benchmark, {})[make] = json.loads(path.read_text())
    return found


def figure(row, result):
    """What one file says of a row, or NONE where it does not say it."""
    value = result
    for key in row.path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return NONE
    if row.unit:
        return f"{value:,.0f} {row.unit}" if value >= 10 else f"{value:.1f} {row.unit}"
    return f"{value['ratio']:.2f} ({value['opponent']})"


def table(found):
    """The lines between the two marks."""
    makes = sorted({make for files in found.values() for make in files})
    names = {make: files[make]["cpu"] for files in found.values() for make in files}
    lines = ["| our time over (the fastest opponent's) | " + " | ".join(names[m] for m in makes) + " |"]
    lines.append("|---" * (1 + len(makes)) + "|")
    for row in ROWS:
        files = found.get(row.benchmark, {})
        figures = [figure(row, files[make]) if make in files else NONE for make in makes]
        if any(one != NONE for one in figures):
            lines.append(f"| {row.what} | " + " | ".join(figures) + " |")
    loads = sorted({files[make]["load_average"] for files in found.values() for make in files})
    lines.append("")
    lines.append(
        f"Two threads, ours in float32; load averages when they began: {loads[0]:.1f} to {loads[-1]:.1f}."
    )
    return "\n".join(lines) + "\n"


def readme_with(text, lines):
    """README's text with these lines between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + lines + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where README differs")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    text = path.read_text()
    made = readme_with(text, table(results()))
    if check:
        return int(made != text)
    path.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
