"""How many processor cores this process may use: an affinity mask or a container may limit them."""

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


def _quotas() -> Iterator[float]:
    """The limit in cores of every control group, version 1 or 2, that this process belongs to."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:  # Not Linux.
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 1 mounts each controller, or the group of a line, under its name.
        homes = [CGROUPS] if not controllers else [CGROUPS / controllers, CGROUPS / "cpu"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for home in homes:
            # The limits of parents hold as well. A container sees its own group as the root.
            for depth in range(len(parts), -1, -1):
                quota = _quota(home.joinpath(*parts[:depth]))
                if quota is not None:
                    yield quota


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
