"""Processor cores and memory that this process may use: an affinity mask or a container may limit them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cores() -> int:
    """The number of cores that this process may use, at least 1; a quota of 2.5 cores counts as 3."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas())]))


def free_memory(available: int) -> int:
    """Returns how many of the bytes that the machine has available this process may still take."""
    return max(0, min([available, *(left for group in _groups("memory") if (left := _room(group)) is not None)]))


def _quotas() -> Iterator[float]:
    """The limit in cores of every control group, version 1 or 2, that this process belongs to."""
    return (quota for group in _groups("cpu") if (quota := _quota(group)) is not None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders that a control group of this process, or a parent of one, may have for a controller."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:  # Not Linux.
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 mounts each controller, or the group of a line, under its name.
        homes = [CGROUPS] if not controllers else [CGROUPS / controllers, CGROUPS / controller]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for home in homes:
            # The limits of parents hold as well. A container sees its own group as the root.
            yield from (home.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _quota(group: Path) -> float | None:
    """Cores of one control group; None where it has no limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / file).read_text() for file in files).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # No such file, or "max": no limit.
            continue
    return None


def _room(group: Path) -> int | None:
    """Bytes that one control group has left; None where it has no limit."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            left = int((group / limit).read_text()) - int((group / used).read_text())
            # Files that were read and may be forgotten count as used.
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return left + int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        except (OSError, ValueError):  # No such file, or "max": no limit.
            continue
    return None
