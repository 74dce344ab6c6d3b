"""What the README shows runs as it stands."""

import re
import subprocess
import sys
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


def test_its_speed_table_is_what_the_benchmarks_wrote():
    made = [sys.executable, README.parent / "benchmarks" / "table.py", "--check"]
    assert subprocess.run(made, check=False).returncode == 0, "README differs: python benchmarks/table.py"
