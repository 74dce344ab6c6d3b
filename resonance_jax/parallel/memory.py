"""How much memory a compiled program takes and how much is free, so that too much is refused beforehand."""

from collections.abc import Sequence
from pathlib import Path

import jax

from resonance_jax.parallel.mesh import Device


def needed(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes per device that a program compiled for CPU or GPU takes: (arguments and results, temporaries).

    There all temporaries are one allocation beside the arguments, so that the sum of both is what is held.
    (The peak that XLA states for a CPU leaves most of it out.) For a program for TPU, use `peak`. (0, 0)
    where the backend does not tell.
    """
    m = compiled.memory_analysis()
    if m is None:
        return 0, 0
    return (
        m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes,
    )


def peak(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program compiled for TPU holds on a device at its worst moment, by the compiler's account.

    It is what the compiler compares with the chip's memory. Arguments plus temporaries would be more: the
    step gives its arguments away, and the temporaries that take their place are counted again.
    """
    sizes = compiled.memory_analysis()
    assert sizes is not None  # the TPU's compiler always tells
    return int(sizes.peak_memory_in_bytes)


def free(devices: Sequence[Device]) -> int | None:
    """Bytes free on the fullest of the devices; CPU devices share the host's memory alike. None where the
    system does not say."""
    limits = [device.memory_stats() for device in devices]
    if all(stats and "bytes_limit" in stats for stats in limits):
        return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in limits)
    host = _host_free() if devices[0].platform == "cpu" else None
    return None if host is None else host // len(devices)


def _host_free() -> int | None:
    """Bytes that the kernel says are available, or the control group's limit where that is less."""
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
    """A number of bytes for people: "1.5 GiB" or "12 MiB"."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**28 else f"{count / 2**20:,.0f} MiB"
