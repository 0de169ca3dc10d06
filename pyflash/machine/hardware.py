"""What this machine has: memory, what of it this process may use, and CPU kernel sets."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyflash.native.block_types import names_at
from pyflash.native.library import ffi, lib

_BEST_FIRST = ("amx", "avx512", "avxvnni", "avx2", "i8mm", "dotprod", "neon", "scalar")


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


def devices() -> dict[str, str]:
    """What can compute, by kind: "ready", what there is, or why it cannot be used."""
    return {"cpu": "ready", "cuda": _device_state("cuda")}


def _text(letters: Any) -> str:
    return str(ffi.string(letters).decode(errors="replace"))


def _count_devices(kind: str) -> tuple[int, str | None]:
    """How many devices of a kind can be used, and why none."""
    n, error = ffi.new("int32_t *"), ffi.new("pf_error *")
    usable = lib.pf_device_count(kind.encode(), n, error) == lib.PF_OK
    return (n[0], None) if usable else (0, _text(error.message))


def device_problem(kind: str) -> str | None:
    """Why no device of a kind can be used; None when one can."""
    return _count_devices(kind)[1]


def device_test(kind: str, index: int) -> str | None:
    """Why a device fails its self-test, a fraction of a second of small operations; None when it passes."""
    error = ffi.new("pf_error *")
    return None if lib.pf_device_test(kind.encode(), index, error) == lib.PF_OK else _text(error.message)


def _device_state(kind: str) -> str:
    error, info = ffi.new("pf_error *"), ffi.new("pf_device_info *")
    count, problem = _count_devices(kind)
    if problem is not None:
        return problem
    found = []
    for index in range(count):
        info.struct_size = ffi.sizeof("pf_device_info")
        known = lib.pf_device_describe(kind.encode(), index, info, error) == lib.PF_OK
        if not known:
            found.append(_text(error.message))
            continue
        problem = device_test(kind, index)
        result = "self-test passed" if problem is None else f"not to be used: {problem}"
        found.append(f"{_text(info.name)}, {info.total_bytes / 2**30:.0f} GiB, {result}, weights of "
                     f"{' '.join(names_at(info.weight_types))}")
    return f"experimental: {'; '.join(found)}"


# -- memory --


@dataclass(frozen=True)
class MachineMemory:
    """Bytes; None where the system does not tell.

    total: physical memory. available: what programs can take now without others being swapped out, within the limit;
    files that the system caches count as available. limit: a container's, where it is below total.
    """

    total: int | None
    available: int | None
    limit: int | None

    @property
    def usable(self) -> int | None:
        """Most that this process could ever have."""
        return self.total if self.limit is None else self.limit


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of this process. resident: in physical memory. private: of that, what is no file's (approximately)."""

    resident: int
    private: int


def memory(root: Path = Path("/")) -> MachineMemory:
    """This machine's memory. root: where /proc and /sys are (for tests)."""
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        return MachineMemory(sysctl_int("hw.memsize"), _available_of_vm_stat(_output("vm_stat")), None)
    return _linux_memory(root)


def process_memory() -> ProcessMemory | None:
    """What this process takes now, or None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_process()
    if sys.platform == "darwin":
        return _mac_process()
    sizes = _kilobyte_lines(Path("/proc/self/status"))
    if "VmRSS" not in sizes:
        return None
    return ProcessMemory(sizes["VmRSS"], sizes.get("RssAnon", sizes["VmRSS"]))


def read_text(path: Path) -> str:
    """The file's text, or "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def memory_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has ended for want of memory since it started; 0 where it does not tell (Linux does)."""
    match = re.search(r"^oom_kill (\d+)$", read_text(root / "proc/vmstat"), re.MULTILINE)
    return int(match[1]) if match else 0


def outer_cache_bytes(root: Path = Path("/")) -> int:
    """All caches of the third level together; 0 where the system does not tell. root: where /sys is (for tests)."""
    groups = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        size = re.fullmatch(r"(\d+)K", read_text(folder / "size").strip())
        if size is not None:
            groups[read_text(folder / "shared_cpu_list")] = 1024 * int(size[1])
    return sum(groups.values())


# -- Linux --


def _kilobyte_lines(path: Path) -> dict[str, int]:
    """Bytes by name of lines such as "MemTotal:   24682416 kB"."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", read_text(path), re.MULTILINE)
    return {name: int(size) * 1024 for name, size in found}


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _linux_memory(root: Path) -> MachineMemory:
    sizes = _kilobyte_lines(root / "proc/meminfo")
    total, available = sizes.get("MemTotal") or _physical_memory(), sizes.get("MemAvailable")
    limit = None
    for group_limit, group_free in _cgroup_limits(root):
        if total is not None and group_limit >= total:
            continue
        limit = group_limit if limit is None else min(limit, group_limit)
        available = group_free if available is None else min(available, group_free)
    return MachineMemory(total, available, limit)


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, what is left of it) of the control groups that this process is in, from its own one upwards.

    Inside a container the path may be that of the host: then only the mount's root is there, and is the container's.
    """
    found = []
    for folder, version in control_groups(root, "memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (read_text(folder / name).strip() for name in names)
        if limit.isdecimal():
            taken = int(used) - _cached(folder) if used.isdecimal() else 0
            found.append((int(limit), max(0, int(limit) - max(0, taken))))
    return found


def control_groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of the control groups that this process is in, from its own up to the mount's root, each with the version.

    Where /proc does not tell, the root alone. root: where /proc and /sys are.
    """
    mounts = root / "sys/fs/cgroup"
    lines = read_text(root / "proc/self/cgroup").splitlines() or ["0::/", f"1:{controller}:/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            places, version = [mounts, mounts / "unified"], 2
        elif controller in controllers.split(","):
            places, version = list(dict.fromkeys((mounts / controllers, mounts / controller))), 1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount in places:
            yield from ((mount / each, version) for each in (group, *group.parents))


def _cached(group: Path) -> int:
    """Bytes of files in the group's memory that give way when programs need it."""
    sizes: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", read_text(group / "memory.stat"), re.MULTILINE))
    return sum(int(sizes.get(f"total_{name}", sizes.get(name, "0"))) for name in ("active_file", "inactive_file"))


# -- macOS --


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _available_of_vm_stat(text: str) -> int | None:
    """Free pages, and those that give way at once, as `vm_stat` prints them."""
    page = re.search(r"page size of (\d+) bytes", text)
    pages: dict[str, str] = dict(re.findall(r"^Pages ([\w ]+):\s+(\d+)\.", text, re.MULTILINE))
    if page is None or "free" not in pages:
        return None
    return int(page[1]) * sum(int(pages.get(name, "0")) for name in ("free", "inactive", "speculative"))


def sysctl_bytes(name: str) -> bytes | None:
    """A value of macOS's sysctl as it lies in memory, or None."""
    try:
        call = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError, TypeError):
        return None
    size = ctypes.c_size_t(0)
    if call(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0 or size.value == 0:
        return None
    value = ctypes.create_string_buffer(size.value)
    if call(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return value.raw[: size.value]


def sysctl_int(name: str) -> int | None:
    """An integer of macOS's sysctl, or None."""
    value = sysctl_bytes(name)
    return None if value is None else int.from_bytes(value, sys.byteorder)


def _mac_process() -> ProcessMemory | None:
    class Usage(ctypes.Structure):  # rusage_info_v0 of <sys/resource.h>
        _fields_ = [("uuid", ctypes.c_uint8 * 16), ("values", ctypes.c_uint64 * 10)]

    usage = Usage()
    try:
        if ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 0, ctypes.byref(usage)) != 0:
            return None
    except (OSError, AttributeError, TypeError):
        return None
    resident, footprint = 6, 7  # ri_resident_size, ri_phys_footprint
    return ProcessMemory(int(usage.values[resident]), int(usage.values[footprint]))


# -- Windows --


def _windows_memory() -> MachineMemory:
    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("available", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 5),
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return MachineMemory(None, None, None)
    return MachineMemory(int(status.total), int(status.available), None)


def _windows_process() -> ProcessMemory | None:
    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS_EX
        _fields_ = [("size", ctypes.c_ulong), ("faults", ctypes.c_ulong), ("values", ctypes.c_size_t * 9)]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    this = ctypes.c_void_p(kernel32.GetCurrentProcess())
    if not kernel32.K32GetProcessMemoryInfo(this, ctypes.byref(counters), ctypes.sizeof(counters)):
        return None
    working_set, private = 1, 8  # WorkingSetSize, PrivateUsage
    return ProcessMemory(int(counters.values[working_set]), int(counters.values[private]))
