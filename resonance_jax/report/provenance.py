"""Where a result was made, which every result file says."""

import os
import platform
import shutil
import subprocess
from pathlib import Path


def machine() -> dict[str, str | int | None]:
    """The device, the CPU's cores, the versions of jax and Python and, in a checkout, the commit."""
    import jax

    root = Path(__file__).resolve().parents[2]
    commit = ""
    if shutil.which("git"):
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }
