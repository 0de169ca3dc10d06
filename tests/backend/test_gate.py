"""Gate 3: every kernel and operation of every instruction set against the scalar ones (see gate.h and gate_*.c).

The AVX-512 and AVX-VNNI kernels run natively where the machine has those, and emulated on every x86-64 machine; AMX's
only where the machine has it, as nothing emulates them; the ARM kernels natively on an arm64 machine, and under
qemu-user where it and a cross compiler are installed.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import Builds

CANNOT_RUN = 77  # the program's exit status


IS_ARM = platform.machine().lower() in ("aarch64", "arm64")
NATIVE = ["scalar", "neon", "dotprod", "i8mm"] if IS_ARM else ["scalar", "avx2", "avxvnni", "avx512", "amx"]


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1500)
    print(done.stdout)
    if done.returncode == CANNOT_RUN:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("isa", NATIVE)
def test_native(builds: Builds, isa: str) -> None:
    run(builds.get("native")[0], isa)


@pytest.mark.long
@pytest.mark.parametrize("isa", ["avx512", "avxvnni"])
def test_avx512_emulated(builds: Builds, isa: str) -> None:
    run(builds.get("emulated")[0], isa)


@pytest.mark.long
@pytest.mark.parametrize("isa", ["neon", "dotprod", "i8mm"])
def test_arm_under_qemu(builds: Builds, isa: str) -> None:
    """On the oldest processor that has the set's instructions; `max` has every one that qemu knows."""
    processor = {"neon": "cortex-a53", "dotprod": "neoverse-n1", "i8mm": "max"}[isa]
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("no qemu-aarch64 (Debian: qemu-user)")
    run(qemu, "-cpu", processor, builds.get("arm64")[0], isa)


@pytest.mark.long
@pytest.mark.parametrize("isa", NATIVE)
def test_sanitized(builds: Builds, isa: str) -> None:
    run(builds.get("sanitized")[0], isa)
