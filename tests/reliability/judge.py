"""How a run on a mutated input is judged: by its exit code, its sentence, its files."""

import contextlib
import dataclasses
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from resonance_jax.command import guarded
from resonance_jax.command.run_folder import SET_UP
from tests.unchecked import unchecked

PYTHONS_WORDS = re.compile(
    r"NoneType|object is not|has no attribute|invalid literal|unhashable|index out of range|Expecting |"
    r"could not "
    r"convert|<class|[A-Z]\w+(Error|Exception)\b|must be real number|not supported between|"
    r"unexpected keyword|codec can't|not enough values|too many values|\bdict\b|\bNone\b"
)
"""What Python says to a programmer, which has no place in a sentence for a user."""


@dataclasses.dataclass
class Verdict:
    """How an input fared. outcome: "read", "refused" or "partly"; faults: by kind, what it did wrong."""

    outcome: str
    faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    said: str = ""


def judged(run: Callable[..., int | None], config: object, names: list[str], folder: Path | None) -> Verdict:
    """Run a command as its user does.

    Args:
        run: the command, or any function of one argument.
        config: its argument.
        names: a refusal must name at least one of these: the file, the folder, the key.
        folder: the run folder, in which a refusal leaves nothing; None: there is none.
    """
    before = tree(folder)
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(record=True) as warned, unchecked():
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = guarded(run, config)
    said = err.getvalue().strip()
    told = [str(warning.message) for warning in warned if issubclass(warning.category, UserWarning)]
    verdict = Verdict({0: "read", 2: "refused", 3: "partly"}.get(code, f"exit {code}"), said=said)
    if "Traceback" in said or code not in (0, 2, 3):
        verdict.faults.append(("traceback", said[-800:]))
    elif code == 2:
        verdict.faults += [("sentence", fault) for fault in _of_sentence(said, names)]
        verdict.faults += [("half-written", fault) for fault in _of_files(folder, before)]
    verdict.faults += [("sentence", f"warning: {text}") for text in told if PYTHONS_WORDS.search(text)]
    return verdict


def _of_sentence(said: str, names: list[str]) -> list[str]:
    faults = []
    if len(said.splitlines()) != 1 or not said.startswith("error: ") or len(said) > 1200:
        faults.append(f"not one line: {said[:400]}")
    if names and not any(name in said for name in names):
        faults.append(f"names none of {names}: {said[:400]}")
    if found := PYTHONS_WORDS.search(said):
        faults.append(f"Python's words {found[0]!r}: {said[:400]}")
    return faults


def tree(folder: Path | None) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    files = sorted(folder.rglob("*")) if folder is not None and folder.exists() else []
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


def _of_files(folder: Path | None, before: dict[str, bytes]) -> list[str]:
    """What a refusal left that it should not have: all that keeps a corrected command out of the folder."""
    after = tree(folder)
    left = [name for name in after.keys() - before.keys() if name.split("/")[0] not in SET_UP]
    lost = [name for name in before if name not in after]
    broken = [
        name for name in after.keys() - before.keys() if name.endswith(".json") and not _whole(after[name])
    ]
    return [
        f"{what} {names}" for what, names in (("left", left), ("lost", lost), ("broken", broken)) if names
    ]


def _whole(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
