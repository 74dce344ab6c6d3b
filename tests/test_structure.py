"""The house keeps its shape: packages import downwards only, and starting up is quick."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    ("resonance_jax.files", "resonance_jax.digest"),
    ("resonance_jax.rope",),
    ("resonance_jax.parallel",),
    ("resonance_jax.model",),
    ("resonance_jax.train", "resonance_jax.generate", "resonance_jax.evaluate"),
    ("resonance_jax.interop",),
    ("resonance_jax.report",),
    ("configs",),
    ("experiments",),
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# data stands beside: it may use files only; evaluate may use data and generate.
BESIDE = {"resonance_jax.data"}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in ("configs", "experiments"):
        return parts[0]
    if parts[0] == "resonance_jax" and len(parts) > 1:
        return ".".join(parts[:2])
    return None


def imports():
    """(file, room of the file, room imported) for every import in the tree, lazy ones included."""
    for folder in ("resonance_jax", "configs", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            if own is None or own == "resonance_jax.__init__":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module == "resonance_jax":
                    names = [f"resonance_jax.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                for name in names:
                    yield path.relative_to(ROOT), own, room_of(name), name.split(".")[0]


def allowed(own: str, other: str) -> bool:
    if own == other or other in FLOORS[0]:
        return True
    if own in BESIDE:
        return False
    if other in BESIDE:
        return FLOOR[own] >= FLOOR["resonance_jax.evaluate"] and own != "resonance_jax.train"
    if FLOOR[own] == FLOOR[other]:
        return (own, other) == ("resonance_jax.evaluate", "resonance_jax.generate")
    return FLOOR[own] > FLOOR[other]


def test_packages_import_downwards_only():
    wrong = [
        f"{path}: {own} imports {other}"
        for path, own, other, _ in imports()
        if other and not allowed(own, other)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_can_fail():
    assert not allowed("resonance_jax.rope", "resonance_jax.model")
    assert not allowed("resonance_jax.train", "resonance_jax.evaluate")
    assert not allowed("resonance_jax.data", "resonance_jax.rope")
    assert allowed("resonance_jax.evaluate", "resonance_jax.data")


def test_torch_and_transformers_stay_in_interop():
    wrong = [
        str(path)
        for path, own, _, top in imports()
        if top in ("torch", "transformers", "peft") and own != "resonance_jax.interop"
    ]
    assert not wrong


def test_no_file_holds_more_than_one_concept_can_fill():
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("resonance_jax", "configs", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long


def run(*command: str) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        best = min(best, time.monotonic() - began)
    return best


def commands() -> list[str]:
    frame = {"__init__", "command"}
    return sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if p.stem not in frame)


@pytest.mark.parametrize("name", commands())
def test_help_is_quick(name):
    assert run("-m", f"experiments.{name}", "--help") < 1.5


def test_import_is_quick():
    assert run("-c", "import resonance_jax") < 1.5
