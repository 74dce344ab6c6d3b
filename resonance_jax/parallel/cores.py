"""How many CPU cores this process may use, which is often fewer than the machine has."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """The cores that the scheduler and the control group leave to this process; at least 1.

    A container or a batch job sees all cores of its host in os.cpu_count(). What it may use is the affinity
    mask (taskset, Slurm, a container's cpuset), or a control group's quota of time where that is less
    (`docker run --cpus`, Kubernetes limits).

    Args:
        cgroup: where the control group's files lie.
    """
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the control group allows, None where it sets no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text()  # version 1, where -1 is no limit
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return cores if cores > 0 else None
