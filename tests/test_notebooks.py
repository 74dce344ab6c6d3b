"""The notebooks run, were run, and say where they come from in one way."""

import configparser
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IN_SMALL = [pytest.param(p, marks=pytest.mark.full if p.stem[:2] in ("02", "04") else ()) for p in NOTEBOOKS]
"""The other two run what the tests of their studies run, and take half a minute each."""


def read(path):
    return nbformat.read(path, as_version=4)


def url() -> str:
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    return stated["metadata"]["url"]


def execute(path, folder, monkeypatch, smoke):
    import nbclient

    monkeypatch.setenv("SMOKE", "1" if smoke else "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # As a user has it: one device a process, default optimisation.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = read(path)
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    return notebook


def test_there_are_four():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parity
@pytest.mark.parametrize("path", IN_SMALL, ids=lambda path: path.stem)
def test_it_runs_in_small(path, tmp_path, monkeypatch):
    execute(path, tmp_path, monkeypatch, smoke=True)
    assert list(tmp_path.glob("results-*.zip")) and list(tmp_path.glob("results-*/*.png"))


@pytest.mark.full
@pytest.mark.parity
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    execute(path, tmp_path, monkeypatch, smoke=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_badge_and_install_cell_name_the_one_url(path):
    first, install = read(path).cells[:2]
    on_colab = url().replace("github.com", "colab.research.google.com/github")
    assert f"({on_colab}/blob/main/notebooks/{path.name})" in first.source
    assert f'URL = "{url()}"' in install.source
    # The runtime's own jax stays: nothing may pull another one in.
    assert '"--no-deps"' in install.source and '"jax' not in install.source
    assert "from a clone" in install.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_of_a_real_run(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "display_data" in kinds and "error" not in kinds
    text = "".join(str(output) for cell in cells for output in cell.outputs)
    assert "/home/" not in text and "/tmp/" not in text and "/root/" not in text
