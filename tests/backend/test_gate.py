"""Gate 3: every kernel and operation of every instruction set against the scalar ones (see gate.h and gate_*.c).

The AVX-512 kernels run natively where the machine has AVX-512, and emulated by SIMDe on every other x86-64 machine.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import Builds

CANNOT_RUN = 77  # the program's exit status


def run(program: Path, *isas: str) -> None:
    done = subprocess.run([str(program), *isas], capture_output=True, text=True, timeout=500)
    print(done.stdout)
    if done.returncode == CANNOT_RUN:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_native(builds: Builds, isa: str) -> None:
    run(builds.get("native")[0], isa)


def test_avx512_emulated(builds: Builds) -> None:
    run(builds.get("emulated")[0], "avx512")


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_sanitized(builds: Builds, isa: str) -> None:
    run(builds.get("sanitized")[0], isa)
