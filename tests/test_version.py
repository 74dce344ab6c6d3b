"""The version stands in resonance_jax.__version__; where a format wants a copy, the copy agrees."""

import configparser
import re
from pathlib import Path

import yaml

from resonance_jax import __version__

ROOT = Path(__file__).resolve().parent.parent


def test_setup_cfg_reads_it_from_the_package():
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    assert stated["metadata"]["version"] == "attr: resonance_jax.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_citation_names_it():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_changelogs_newest_edition_is_it():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    editions = [heading for heading in headings if heading != "Unreleased"]
    assert editions[0] == __version__ and headings[0] in ("Unreleased", __version__)
