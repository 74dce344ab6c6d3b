"""What the README shows runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_its_python_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, README.name, "exec"), names)
    assert names["logits"].shape == (1, 512, 258) and names["nll"].shape == (1, 511)
    assert "Resonance YaRN" in capsys.readouterr().out


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert link.startswith("https://") or (README.parent / link).exists(), link
