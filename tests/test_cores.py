import os

import pytest

from mifuse_cli import cores


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Write the files of control groups; the process may otherwise use 8 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_OWN_GROUPS", tmp_path / "own")

    def write(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return write


def test_affinity(monkeypatch, groups):
    assert cores.free_cores() == 8  # no control groups, as on a Mac
    groups("0::/\n")
    assert cores.free_cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert cores.free_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores.free_cores() == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300000 100000", 3),
        ("350000 100000", 3),
        ("50000 100000", 1),
        ("max 100000", 8),
        ("9900000 100000", 8),
    ],
)
def test_quota(groups, text, expected):
    groups("0::/job\n", **{"job/cpu.max": text + "\n"})
    assert cores.free_cores() == expected


def test_quota_of_a_group_around(groups):
    groups(
        "0::/a/b\n", **{"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}
    )
    assert cores.free_cores() == 2


def test_quota_of_a_container_whose_path_is_that_of_the_host(groups):
    groups("0::/../../kubepods/x\n", **{"cpu.max": "200000 100000\n"})
    assert cores.free_cores() == 2


def test_quota_of_version_1(groups):
    files = {"cpu/job/cpu.cfs_quota_us": "200000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}
    groups("5:memory:/\n4:cpu,cpuacct:/job\n", **files)
    assert cores.free_cores() == 2
    groups("4:cpu,cpuacct:/job\n", **{"cpu/job/cpu.cfs_quota_us": "-1\n"})
    assert cores.free_cores() == 8


@pytest.mark.parametrize("text", ["", "often", "0 0", "100000 0"])
def test_what_is_no_quota_limits_nothing(groups, text):
    groups("0::/\n", **{"cpu.max": text})
    assert cores.free_cores() == 8
