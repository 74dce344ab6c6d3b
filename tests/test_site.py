"""The site that `make docs` builds leaves no page out; mkdocs itself checks the links (strict)."""

from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def pages(nav: list | dict | str) -> Iterator[str]:
    """Every page that a nav names, from the top."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(entry)


def test_its_nav_names_each_page_once():
    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = [path for pattern in ("*.md", "docs/*.md", "results/**/*.md") for path in ROOT.glob(pattern)]
    packages = [path.parent.name for path in ROOT.glob("resonance_jax/*/__init__.py")]
    expected = [path.relative_to(ROOT).as_posix() for path in written]
    expected += [f"api/{name}.md" for name in packages]
    assert len(written) > 12 and len(packages) > 10
    assert sorted(named) == sorted(expected)


def test_it_stays_strict():
    stated = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert stated["strict"] is True
    levels = [level for checks in stated["validation"].values() for level in checks.values()]
    assert set(levels) == {"warn"} and len(levels) == 7
