"""Three hundred mutated inputs: no traceback, no number that float64 contradicts, nothing half-written.

python -m pytest -s tests/reliability/test_mutated_inputs.py     prints the counts by kind
"""

import collections
import random
import shutil
from pathlib import Path

import pytest

from resonance_jax import report
from tests.reliability import arguments, gguf_inputs, kept, scored
from tests.reliability.judge import judged

KINDS = {
    "config.json": (scored.a_config, 60),
    "safetensors": (scored.safetensors, 50),
    "tokenizers": (scored.a_tokenizer, 40),
    "corpora": (scored.a_corpus, 50),
    "inputs changed under a kept result": (scored.changed_under_a_kept_result, 16),
    "GGUF": (gguf_inputs.a_gguf, 20),
    "token caches": (kept.a_token_cache, 20),
    "run folders": (kept.a_run_folder, 20),
    "kept documents": (kept.a_kept_document, 12),
    "journals": (kept.a_journal, 12),
    "checkpoints of a training": (kept.a_training_checkpoint, 12),
    "arguments": (arguments.an_argument, 40),
}
"""By name: what mutates one input and judges it, and how many there are of it."""
FAULTS = ("traceback", "wrong number", "half-written", "sentence")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Whole inputs, with a finished run and checkpoints; made where the mutated copies will lie."""
    folder = tmp_path_factory.mktemp("mutated") / "inputs"
    scored.base(folder)
    gguf_inputs.base(folder)
    arguments.base(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "perplexity_panels", _no_picture)
        finished = judged(scored.command.run, scored.config_of(folder, folder / "run"), [], folder / "run")
    assert finished.outcome == "read" and not finished.faults
    shutil.move(folder / "run", folder / "finished")
    kept.saved(folder / "checkpoints")
    return shutil.move(folder, folder.with_name("whole"))


def _no_picture(results: object, path: Path, *more: object) -> None:
    path.write_bytes(b"a picture, which costs most of a small run")


@pytest.mark.parametrize("share", [8, pytest.param(1, marks=pytest.mark.full)])
def test_mutated_inputs(base, monkeypatch, share):
    """Every input, or one in `share` of each kind."""
    monkeypatch.setattr(report, "perplexity_panels", _no_picture)
    monkeypatch.chdir(base.parent)
    rows, faults = [], []
    for name, (mutate_and_judge, inputs) in KINDS.items():
        counts: collections.Counter[str] = collections.Counter()
        for number in range(0, inputs, share):
            folder = Path(shutil.copytree(base, base.with_name("inputs")))
            verdict = mutate_and_judge(random.Random(f"{name} {number}"), folder)
            counts.update([verdict.outcome, *{kind for kind, _ in verdict.faults}])
            faults += [f"{name} {number}, {kind}: {what}" for kind, what in verdict.faults]
            shutil.rmtree(folder)
        rows.append([name, len(range(0, inputs, share)), *(counts[c] for c in (*OUTCOMES, *FAULTS))])
    print(table(rows))
    assert not faults, "\n".join(faults)


OUTCOMES = ("read", "partly", "refused")


def table(rows: list[list]) -> str:
    """The counts by kind, and their sum, as Markdown."""
    total = ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    head = ["mutated", "inputs", "read", "exit 3", "refused", *FAULTS]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows, total]
    return "\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
