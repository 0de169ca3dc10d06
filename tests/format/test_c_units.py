"""Runs the C unit tests of csrc/base and csrc/format under sanitizers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import native_build
import pytest

from .programs import run


@pytest.fixture(scope="module")
def program() -> Path:
    return native_build.build("sanitized", "test_format") / "test_format"


@pytest.mark.parametrize("part", ["status", "memory", "pool", "files", "gguf"])
def test_units(program: Path, part: str, tmp_path: Path) -> None:
    done = run(program, part, tmp_path)
    assert done.returncode == 0, done.stderr
    if part == "files":  # no temporary file is left behind, whether committed, aborted or failed
        assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "out"]


def test_pool_without_races(tmp_path: Path) -> None:
    program = native_build.build("races", "test_format") / "test_format"
    done = run(program, "pool", tmp_path)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel's address layout")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs sched_setaffinity")
def test_cpu_count_follows_affinity(program: Path) -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= int(run(program, "cpus").stdout) <= len(allowed)
    one = run(program, "cpus", preexec_fn=lambda: os.sched_setaffinity(0, {min(allowed)}))
    assert int(one.stdout) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 0),
        ("0::/a/b\n", {"": None}, 0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000"}, 0),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/only/the/hosts\n", {"cpu.max": "50000 100000"}, 1),  # a container's own group is the mount's root
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/a\n", {"a/cpu.max": "rubbish"}, 0),
        ("0::/a\n", {"a/cpu.max": "100000 0"}, 0),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpuacct,cpu:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 0),
        ("3:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, 0),
    ],
)
def test_cpu_quota(
    program: Path, tmp_path: Path, groups: str, files: dict[str, str | None], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text + "\n")
    assert int(run(program, "quota", tmp_path).stdout) == expected
