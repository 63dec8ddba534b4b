"""How many cores this process may use, which is often fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def free_cores() -> int:
    """Cores that the scheduler lets this process use, at least 1: its affinity, and the quotas of its cgroups.

    A quota that is no whole number of cores is rounded down: a process more would only wait for the others.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas()])))


def _quotas() -> Iterator[float]:
    """CPU quotas of this process's control groups and of those around them, in cores."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        # Within a container the path may be that on the host; the container's own group is then the root.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            yield from _quota(directory)
            if directory == root:
                break


def _quota(group: Path) -> Iterator[float]:
    """Quota of one control group in cores, if it has one; version 2 has one file, version 1 two."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        if quota not in ("max", "-1"):
            yield float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return
