"""What docs/ says holds: snippets run, options exist, figures are those of our code, links lead somewhere."""

import ast
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from resonance_jax import data, evaluate, rope

DOCS = Path(__file__).resolve().parent.parent / "docs"
DIFFERENCES = (DOCS / "differences.md").read_text()
GUIDES = (DOCS / "guides.md").read_text()


def section(name: str) -> str:
    return re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DIFFERENCES, re.DOTALL | re.MULTILINE).group(1)


def fields(study: str) -> set[str]:
    """Every option of the commands of a study."""
    names = set()
    for thing in vars(importlib.import_module(f"configs.{study}")).values():
        names |= set(getattr(thing, "__dataclass_fields__", ()))
    return {name.replace("_", "-") for name in names}


def test_every_encoding_it_names_can_be_made():
    snippets = re.findall(r"`(RopeSpec\(.*?\))`", DIFFERENCES)
    assert len(snippets) >= 7
    for snippet in snippets:
        assert isinstance(ast.parse(snippet, mode="eval").body, ast.Call)
        spec = eval(snippet, {"RopeSpec": rope.RopeSpec})
        assert np.isfinite(rope.frequencies(spec, length=32_768).inv_freq64).all(), snippet


@pytest.mark.parametrize(
    ("name", "study"), [("Fine-tuning", "finetune"), ("Perplexity", "perplexity"), ("PosGen", "posgen")]
)
def test_every_option_it_names_exists(name, study):
    options = re.findall(r"--([a-z][a-z0-9-]+)", section(name)) + re.findall(r"`([a-z_]+)=", section(name))
    theirs = {"grad-norm", "bos_id"}  # an option of the release; an argument of evaluate.perplexity
    named = {option.replace("_", "-") for option in options if option not in theirs}
    assert len(named) >= 4 and named <= fields(study), named - fields(study)


@pytest.mark.parametrize("document", ["differences.md", "findings.md", "guides.md"])
def test_links_lead_somewhere(document):
    text = (DOCS / document).read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (DOCS / link).exists(), link


def test_the_guides_commands_have_the_options_they_use():
    commands = re.findall(r"^    python -m experiments\.(\w+) ((?:.*\\\n)*.*)$", GUIDES, re.MULTILINE)
    assert len(commands) >= 8
    for study, rest in commands:
        options = set(re.findall(r"--([a-z][a-z-]+)", rest))
        assert options <= fields(study), (study, options - fields(study))


def test_the_guides_snippet_runs(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", GUIDES, re.DOTALL)
    exec(compile(snippet, "guides.md", "exec"), {})
    out = capsys.readouterr().out
    assert "Resonance YaRN" in out and not re.search(r"[1-9]", out.splitlines()[-1])


def test_the_figures_on_encodings():
    make = lambda *args, **options: rope.frequencies(rope.RopeSpec(*args, **options), length=32_768)
    yarn = dict(scale=8, train_length=4096)
    code, paper, whole = (
        make("yarn", **yarn, **more) for more in ({}, {"ramp": "rotations"}, {"truncate": False})
    )
    ratio = code.inv_freq64 / paper.inv_freq64
    assert max(ratio.max(), 1 / ratio.min()) == pytest.approx(2.3, abs=0.05)
    assert (rope.resonance(code).wavelength != rope.resonance(paper).wavelength).sum() == 25
    assert np.abs(code.inv_freq64 / whole.inv_freq64 - 1).max() == pytest.approx(0.26, abs=0.005)
    base = lambda freqs: freqs.inv_freq64[1] ** (-128 / 2)
    assert base(make("ntk", scale=8)) == pytest.approx(82_685, abs=1)
    dynamic = [make("dynamic_ntk", train_length=4096, dynamic_factor=f) for f in (1, 8)]
    assert [round(base(freqs)) for freqs in dynamic] == [82_685, 607_779]
    assert rope.critical_dimension(make(), 4096) == 46
    assert rope.critical_dimension(make(head_dim=64), 64) == 9
    large = make("yarn", base=500_000, scale=32, train_length=8192)
    single = np.rint(np.float32(2 * np.pi) / large.inv_freq64.astype(np.float32))
    assert (single != rope.resonance(large).wavelength).sum() == 9


def test_the_figures_on_posgen_and_leval():
    tables = {p: evaluate.posgen_encodings.encoding("yarn", p) for p in ("release", "corrected", "paper")}
    plain = rope.frequencies(rope.RopeSpec(head_dim=64)).inv_freq64
    kept = {p: int((t.evaluation.inv_freq64 / plain > 1 - 1e-12).sum()) for p, t in tables.items()}
    assert kept["release"] == 11 and kept["corrected"] == 6
    swapped = {p for p, t in tables.items() if not rope.same(t.train, t.evaluation)}
    assert swapped == {"release", "corrected"}
    assert tables["release"].spec.train_length == 257
    assert data.leval.document_budget("32k") == 31_488
