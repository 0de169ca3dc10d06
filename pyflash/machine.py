"""What this machine has: memory and CPU kernel sets."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

from pyflash._native import ffi, lib

_BEST_FIRST = ("avx512", "avx2", "neon", "scalar")


@dataclass(frozen=True)
class KernelSet:
    """A CPU kernel set; problem says why this machine cannot use it, or is None."""

    name: str
    problem: str | None


def kernel_sets() -> list[KernelSet]:
    """Every kernel set of this build, best first."""
    found = []
    index = 0
    while name := lib.pf_cpu_isa_name(index):
        problem = lib.pf_cpu_isa_problem(index)
        found.append(KernelSet(ffi.string(name).decode(), ffi.string(problem).decode() if problem else None))
        index += 1
    return sorted(found, key=lambda kernels: _BEST_FIRST.index(kernels.name))


def total_memory() -> int | None:
    """Physical memory in bytes, or None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _windows_memory() -> int | None:
    class MemoryStatus(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 6),
        ]

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    known = kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total) if known else None
