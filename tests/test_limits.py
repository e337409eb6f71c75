"""Cores and memory that a process may use: under an affinity mask, and in control groups of both versions."""

import os

import pytest

from fitv2.system import limits


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sixteen cores, and control groups that the test writes: (lines of /proc/self/cgroup, files) to the count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")

    def count(membership, files):
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / "membership").write_text(membership)
        return limits.available_cores()

    return count


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {}, 16),
        ("0::/", {"cpu.max": "max 100000\n"}, 16),
        ("0::/", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ("0::/../host/a", {"cpu.max": "50000 100000"}, 1),
        (
            "4:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("4:cpu:/docker/x", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("3:memory:/", {"cpu.max": "100000 100000"}, 16),
        ("0::/", {"cpu.max": "6400000 100000"}, 16),
    ],
)
def test_quotas(machine, membership, files, expected):
    assert machine(membership, files) == expected


def test_affinity(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert machine("0::/", {"cpu.max": "900000 100000"}) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine("0::/", {}) == 1


V1 = {"memory/a/memory.limit_in_bytes": "900", "memory/a/memory.usage_in_bytes": "500"}


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {}, 1000),
        ("0::/", {"memory.max": "max", "memory.current": "1", "memory.stat": "inactive_file 0"}, 1000),
        ("0::/a", {"a/memory.max": "700", "a/memory.current": "600", "a/memory.stat": "anon 5\ninactive_file 50"}, 150),
        ("0::/a", {"a/memory.max": "7", "a/memory.current": "9", "a/memory.stat": "anon 5"}, 0),
        ("7:memory:/a", V1 | {"memory/a/memory.stat": "inactive_file 5\ntotal_inactive_file 30"}, 430),
    ],
)
def test_free_memory(machine, membership, files, expected):
    machine(membership, files)
    assert limits.free_memory(1000) == expected
