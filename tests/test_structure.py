"""The house keeps its shape: imports go downwards, files are small, names are visible, start-up is quick."""

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    ("resonance_jax.files", "resonance_jax.digest", "resonance_jax.settings"),
    ("resonance_jax.rope",),
    ("resonance_jax.parallel",),
    ("resonance_jax.model",),
    ("resonance_jax.train", "resonance_jax.generate", "resonance_jax.evaluate"),
    ("resonance_jax.interop",),
    ("resonance_jax.report",),
    ("resonance_jax.command",),
    ("configs",),
    ("experiments",),
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# data stands beside: it may use files only; evaluate may use data and generate.
BESIDE = {"resonance_jax.data"}
OPTIONAL = {"resonance_jax.interop.lm_eval": "lm_eval"}
"""Modules that need a library which nothing else needs."""


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in ("configs", "experiments"):
        return parts[0]
    if parts[0] == "resonance_jax" and len(parts) > 1:
        return ".".join(parts[:2])
    return None


def sources() -> list[Path]:
    return [
        path
        for folder in ("resonance_jax", "configs", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imported(path: Path) -> Iterator[str]:
    """Every module, or name of a package, that a file imports, lazy imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            split = module in ("resonance_jax", "experiments")
            yield from (f"{module}.{alias.name}" for alias in node.names) if split else (module,)


def imports():
    """(file, room of the file, room imported) for every import in the tree."""
    for path in sources():
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own is not None and own != "resonance_jax.__init__":
            for name in imported(path):
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


def study_of(path: Path) -> str:
    """The study that a file of experiments/ belongs to: its own name, or its folder's."""
    return path.relative_to(ROOT / "experiments").parts[0].removesuffix(".py")


def test_a_study_imports_no_other_study():
    """Experiments are leaves; a study that fills a folder imports its own files only."""
    paths = sorted((ROOT / "experiments").rglob("*.py"))
    studies = {study_of(path) for path in paths} - {"__init__"}
    assert len(studies) == 10
    for path in paths:
        named = {name.split(".")[1] for name in imported(path) if name.startswith("experiments.")}
        assert named & studies <= {study_of(path)}, path


def test_no_file_holds_more_than_one_concept_can_fill():
    long = {path: n for path in sources() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def unstated(source: str) -> list[str]:
    """Every function of a source text that leaves a type out: its line, its name, what has none."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
            missing = [x.arg for x in named if x.annotation is None and x.arg not in ("self", "cls")]
            missing += [] if node.returns else ["return"]
            if missing:
                found.append(f"{node.lineno}: {node.name} ({', '.join(missing)})")
    return found


def test_every_function_states_its_types():
    paths = sorted((ROOT / "resonance_jax").rglob("*.py"))
    wrong = [f"{path.relative_to(ROOT)}:{each}" for path in paths for each in unstated(path.read_text())]
    assert len(paths) > 100
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(x: int, y) -> int: ...", "1: f (y)"),
        ("def f(x: int): ...", "1: f (return)"),
        ("def f(*rest, key, **more) -> int: ...", "1: f (key, rest, more)"),
        ("class C:\n    def __init__(self, x): ...", "2: __init__ (x, return)"),
        ("def f() -> None:\n    def g(x) -> None: ...", "2: g (x)"),
    ],
)
def test_a_function_without_types_would_be_found(source, missing):
    assert unstated(source) == [missing]


def modules() -> list[str]:
    import resonance_jax

    found = pkgutil.walk_packages(resonance_jax.__path__, "resonance_jax.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_no_module_is_hidden(name):
    """`from package import leaf` gives the module, and not a function of the same name."""
    needs = OPTIONAL.get(name)
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{name} needs {needs}")
    module = importlib.import_module(name)
    package, _, leaf = name.rpartition(".")
    assert getattr(importlib.import_module(package), leaf) is module


def test_a_hidden_module_would_be_found(monkeypatch):
    from resonance_jax import report

    monkeypatch.setattr(report, "tables", lambda: None)
    with pytest.raises(AssertionError):
        test_no_module_is_hidden("resonance_jax.report.tables")


def test_one_import_gives_every_package():
    """In a fresh process: nothing is there before it is used, and everything is when it is."""
    packages = ["rope", "parallel", "model", "data", "train", "generate", "evaluate", "interop", "report"]
    script = f"""
import sys
import resonance_jax
assert "jax" not in sys.modules and "resonance_jax.rope" not in sys.modules
assert set(dir(resonance_jax)) >= set({packages})
for name in {packages}:
    assert getattr(resonance_jax, name).__name__ == "resonance_jax." + name
resonance_jax.rope.RopeSpec()
try:
    resonance_jax.ropes
except AttributeError as error:
    assert "has no attribute 'ropes'" in str(error)
else:
    raise AssertionError("resonance_jax.ropes")
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def run(*command: str) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        best = min(best, time.monotonic() - began)
    return best


def commands() -> list[str]:
    return sorted({study_of(path) for path in (ROOT / "experiments").rglob("*.py")} - {"__init__"})


@pytest.mark.parametrize("name", commands())
def test_help_is_quick(name):
    assert run("-m", f"experiments.{name}", "--help") < 1.5


def test_import_is_quick():
    assert run("-c", "import resonance_jax") < 1.5
