"""What doctor tells about the processor: its name, its cores, and the vector instructions that can be used."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyflash.machine.hardware import control_groups, read_text, sysctl_bytes, sysctl_int

# Those that a kernel set uses, or could use one day.
_X86_FLAGS = ("f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
              "avx512_bf16", "amx_tile", "amx_int8")
_ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme")
# macOS's sysctl names, and IsProcessorFeaturePresent's numbers.
_MAC_FLAGS = {"hw.optional.f16c": "f16c", "hw.optional.fma": "fma", "hw.optional.avx1_0": "avx",
              "hw.optional.avx2_0": "avx2", "hw.optional.avx512f": "avx512f", "hw.optional.AdvSIMD": "asimd",
              "hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm",
              "hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_SME": "sme"}
_WINDOWS_FLAGS = {39: "avx", 40: "avx2", 41: "avx512f", 19: "asimd", 43: "asimddp"}


@dataclass(frozen=True)
class Processor:
    """physical and logical: cores of this machine, None where unknown. usable: logical ones this process may run on.
    quota: how many a container may keep busy, where that is limited. flags: those that the system lets programs use."""

    name: str
    physical: int | None
    logical: int | None
    usable: int | None
    quota: float | None
    flags: tuple[str, ...]


def processor(root: Path = Path("/")) -> Processor:
    """This machine's processor. root: where /proc and /sys are (for tests)."""
    logical = os.cpu_count()
    if sys.platform == "win32":
        return Processor(_windows_name(), _windows_cores(), logical, None, None, tuple(_windows_flags()))
    if sys.platform == "darwin":
        name = (sysctl_bytes("machdep.cpu.brand_string") or b"").rstrip(b"\0").decode("utf-8", "replace")
        flags = tuple(flag for key, flag in _MAC_FLAGS.items() if sysctl_int(key))
        return Processor(name or _fallback_name(), sysctl_int("hw.physicalcpu"), logical, None, None, flags)
    info = read_text(root / "proc/cpuinfo")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return Processor(_linux_name(info), _linux_cores(root), logical, usable, _quota(root), _linux_flags(info))


def _fallback_name() -> str:
    return platform.processor() or platform.machine() or "unknown"


def _linux_name(cpuinfo: str) -> str:
    """"model name" of x86, or the maker's numbers that Arm tells instead."""
    if found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
        return found[1].strip()
    numbers = [re.search(rf"^CPU {what}\s*:\s*(\w+)$", cpuinfo, re.MULTILINE) for what in ("implementer", "part")]
    if all(numbers):
        return f"{platform.machine()}, implementer {numbers[0][1]}, part {numbers[1][1]}"  # type: ignore[index]
    return _fallback_name()


def _linux_flags(cpuinfo: str) -> tuple[str, ...]:
    """Linux leaves out what it does not save the registers of."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(found[1].split()) if found else set()
    return tuple(flag for flag in (*_X86_FLAGS, *_ARM_FLAGS) if flag in present)


def _linux_cores(root: Path) -> int | None:
    """Groups of threads that share a core."""
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    groups = {read_text(folder / "topology" / "thread_siblings_list").strip() for folder in folders} - {""}
    return len(groups) or None


def _quota(root: Path) -> float | None:
    """A container's limit in processors: the tightest of its control group and those above it."""
    found = []
    for folder, version in control_groups(root, "cpu"):
        if version == 2:
            quota, _, period = read_text(folder / "cpu.max").strip().partition(" ")
        else:
            quota, period = (read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


# -- Windows --


def _windows_name() -> str:
    if sys.platform == "win32":
        import winreg

        try:
            key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
                return str(winreg.QueryValueEx(opened, "ProcessorNameString")[0]).strip()
        except OSError:
            pass
    return _fallback_name()


def _windows_cores() -> int | None:
    class Relation(ctypes.Structure):  # SYSTEM_LOGICAL_PROCESSOR_INFORMATION
        _fields_ = [("mask", ctypes.c_size_t), ("kind", ctypes.c_int), ("rest", ctypes.c_ulonglong * 2)]

    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    size = ctypes.c_ulong(0)
    kernel32.GetLogicalProcessorInformation(None, ctypes.byref(size))
    entries = (Relation * max(1, size.value // ctypes.sizeof(Relation)))()
    size.value = ctypes.sizeof(entries)
    if not kernel32.GetLogicalProcessorInformation(entries, ctypes.byref(size)):
        return None
    core = 0  # RelationProcessorCore
    return sum(entry.kind == core for entry in entries[: size.value // ctypes.sizeof(Relation)]) or None


def _windows_flags() -> Iterable[str]:
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    return [flag for number, flag in _WINDOWS_FLAGS.items() if kernel32.IsProcessorFeaturePresent(number)]
