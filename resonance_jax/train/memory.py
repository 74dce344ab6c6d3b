"""What a compiled program takes and what there is, so that too much is refused before anything is made."""

from collections.abc import Sequence
from pathlib import Path

import jax

from resonance_jax.parallel.mesh import Device


def needed(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes a device that a compiled program takes: (what goes in and comes out, temporaries).

    (0, 0) where the compiler does not say.
    """
    m = compiled.memory_analysis()
    if m is None:
        return 0, 0
    return (
        m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes,
    )


def free(devices: Sequence[Device]) -> int | None:
    """Bytes free on each of the devices (host devices share the host's memory); None where nobody knows."""
    limits = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in limits):
        return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in limits)
    host = _host_free() if devices[0].platform == "cpu" else None
    return None if host is None else host // len(devices)


def _host_free() -> int | None:
    """What the kernel says is available, or a control group's limit where that is less."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()))
    return available


def readable(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**28 else f"{count / 2**20:,.0f} MiB"
