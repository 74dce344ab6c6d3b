"""mkdocs hooks: the site is made of the repository's Markdown as it lies, and a page for each package.

README.md, the guides and the results are pages at their own paths, so that one link works on GitHub and on
the site. A link to what is no page (a notebook, a CSV file, a folder) leads to the repository.
"""

import configparser
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("*.md", "docs/*.md", "results/**/*.md", "results/**/*.png")
LINK = re.compile(r"\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
"""A Markdown link to a path; an address has a colon."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the repository's address from setup.cfg, the one place that names it."""
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    config.repo_url = stated["metadata"]["url"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the repository's pages and pictures in the place of what lies in docs/, and add the packages'."""
    theme = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(config.docs_dir)]
    shown = [path.relative_to(ROOT).as_posix() for pattern in SHOWN for path in sorted(ROOT.glob(pattern))]
    packages = [path.parent.name for path in sorted(ROOT.glob("resonance_jax/*/__init__.py"))]
    return Files(
        [
            *theme,
            *(File.generated(config, path, abs_src_path=str(ROOT / path)) for path in shown),
            *(File.generated(config, f"api/{name}.md", content=reference(name)) for name in packages),
        ]
    )


def reference(package: str) -> str:
    """The page of a package: what its __init__ offers, or its modules where it offers nothing by name."""
    return f"---\ntitle: {package}\n---\n\n::: resonance_jax.{package}\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a page's links to files of the repository that are no pages there; mkdocs checks the others."""

    def lead(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link["target"]))
        if path.startswith("..") or files.get_file_from_path(path) or not (ROOT / path).exists():
            return link[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{path}{link['anchor'] or ''})"

    return LINK.sub(lead, markdown)
