"""Where and by which versions a result was made, as every result file states."""

import os
import platform
import shutil
import subprocess
from pathlib import Path


def machine() -> dict[str, str | int | float | None]:
    """The device, the processor, how many cores, how busy they are, the versions, and the commit."""
    import jax

    root = Path(__file__).resolve().parents[2]
    commit = ""
    if shutil.which("git"):
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def processor() -> str:
    """The CPU's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
