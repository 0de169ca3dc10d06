"""Runs the C unit tests of csrc/base and csrc/format under sanitizers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .c_build import BASE, GGUF, build, run

PROGRAM = ["test_format.c", "test_gguf.c"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("units"), "test_format", PROGRAM, BASE + GGUF, "address,undefined")


@pytest.mark.parametrize("part", ["status", "memory", "pool", "files", "gguf"])
def test_units(program: Path, part: str, tmp_path: Path) -> None:
    done = run(program, part, tmp_path)
    assert done.returncode == 0, done.stderr
    if part == "files":  # no temporary file is left behind, whether committed, aborted or failed
        assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "out"]


def test_pool_without_races(tmp_path: Path) -> None:
    program = build(tmp_path, "test_format", PROGRAM, BASE + GGUF, "thread")
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
