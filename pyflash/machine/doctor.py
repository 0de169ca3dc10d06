"""What `pyflash doctor` tells of the installation and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyflash.machine import hardware
from pyflash.machine.info import table
from pyflash.machine.places import cache_dir, homeless
from pyflash.machine.processor import Processor, processor
from pyflash.machine.units import format_bytes
from pyflash.native.block_types import BLOCK_TYPES
from pyflash.native.errors import Error
from pyflash.native.library import __version__, installed_file

_PACKAGES = ("numpy", "cffi", "click")
_EXTRAS = {"grammar": "llguidance"}  # the extra of pyflash and what it brings
_PREFIX = "PYFLASH_"


@dataclass(frozen=True)
class Diagnosis:
    """kernel_set: the one in use, None when the wanted one cannot be. packages, extras: versions, None where absent.
    environment: the PYFLASH_* variables that are set. demo_checkpoint: the bundled one, from which demo_model is made on
    first use; None where the package lacks it. problems keep pyflash from running, warnings a part of it; each
    is a line with the way out."""

    version: str
    library: str
    python: str
    system: str
    processor: Processor
    memory: hardware.MachineMemory
    kernels: tuple[hardware.KernelSet, ...]
    kernel_set: str | None
    devices: dict[str, str]
    packages: dict[str, str | None]
    extras: dict[str, str | None]
    cache_folder: str
    demo_checkpoint: str | None
    demo_model: str | None
    demo_model_made: bool
    limits: dict[str, str]
    environment: dict[str, str]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def diagnose(
    environment: Mapping[str, str], demo_checkpoint: str | None, demo_model: str | None,
    known_problems: Sequence[str] = (), known_warnings: Sequence[str] = (),
) -> Diagnosis:
    """Looks at everything but what the caller knows already, which goes into the fields of a Diagnosis."""
    kernels = tuple(hardware.kernel_sets())
    usable = [each.name for each in kernels if each.problem is None]
    kernel_set: str | None = environment.get("PYFLASH_CPU") or usable[0]
    ours = {name: value for name, value in sorted(environment.items()) if name.startswith(_PREFIX)}
    problems, warnings = list(known_problems), list(known_warnings)
    if kernel_set not in usable:
        problems.append(f"PYFLASH_CPU is {kernel_set!r}, which cannot be used here, so that models will not open: "
                        f"unset it, or set it to {' or '.join(usable)}")
        kernel_set = None
    folder = _cache_folder(warnings)
    limits = _limits()
    warnings += _bad_limits(limits)
    return Diagnosis(
        version=__version__, library=str(environment.get("PYFLASH_LIBRARY") or installed_file("lib")
                                         or installed_file("bin") or "not found"),
        python=f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}", processor=processor(),
        memory=hardware.memory(), kernels=kernels, kernel_set=kernel_set,
        devices=hardware.devices(), packages={name: _version(name) for name in _PACKAGES},
        extras={extra: _version(package) for extra, package in _EXTRAS.items()}, cache_folder=folder,
        demo_checkpoint=demo_checkpoint, demo_model=demo_model,
        demo_model_made=demo_model is not None and os.path.isfile(demo_model), limits=limits, environment=ours,
        problems=tuple(problems), warnings=tuple(warnings),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- folders --


def _cache_folder(warnings: list[str]) -> str:
    """The folder of what can be made again, and warnings about it."""
    try:
        folder = cache_dir()
        warnings += filter(None, [homeless()])
    except Error:  # whoever looks for the demo model has told it
        return "none"
    warnings += _bad_folder(folder)
    return str(folder)


def _bad_folder(folder: Path) -> Iterator[str]:
    place = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield (f"the demo model cannot be made, because {place} is no folder that can be written to: "
               "set PYFLASH_CACHE to one")


# -- limits --


def _limits() -> dict[str, str]:
    """What the system allows, where that matters to a model that is mapped and to large caches."""
    limits = {}
    if sys.platform != "win32":
        import resource

        for name, limit in (("address space", resource.RLIMIT_AS), ("locked memory", resource.RLIMIT_MEMLOCK)):
            allowed, _ = resource.getrlimit(limit)
            limits[name] = "unlimited" if allowed == resource.RLIM_INFINITY else format_bytes(allowed)
    if sys.platform == "linux":
        if (overcommit := hardware.read_text(Path("/proc/sys/vm/overcommit_memory")).strip()):
            limits["overcommit"] = {"0": "heuristic", "1": "always", "2": "never"}.get(overcommit, overcommit)
        pages = hardware.read_text(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
        if "[" in pages:
            limits["huge pages"] = pages.partition("[")[2].partition("]")[0]
    return limits


def _bad_limits(limits: Mapping[str, str]) -> Iterator[str]:
    space = limits.get("address space", "unlimited")
    if space != "unlimited":
        yield f"address space is limited to {space}, and a model larger than that cannot be opened: ulimit -v unlimited"
    if limits.get("overcommit") == "never":
        yield ("the system promises no memory beyond what it has (vm.overcommit_memory is 2), so that large contexts "
               "may be refused: open smaller ones, or set it to 0")


# -- lines --


def describe(found: Diagnosis) -> str:
    """The diagnosis as lines for people."""
    rows = [
        ("pyflash", found.version),
        ("library", found.library),
        ("python", f"{found.python}, " + ", ".join(f"{name} {version}" for name, version in found.packages.items())),
        ("system", found.system),
        ("processor", found.processor.name),
        ("cores", _cores(found.processor)),
        ("instructions", " ".join(found.processor.flags) or "unknown"),
        ("memory", _memory(found.memory)),
        *((name, value) for name, value in found.limits.items()),
        *((f"device {name}", state) for name, state in found.devices.items()),
        *((f"kernels {each.name}", _kernel_state(each, found.kernel_set)) for each in found.kernels),
        ("weight types", " ".join(kind.name for kind in BLOCK_TYPES.values() if kind.is_weight)),
        ("slow types", _slow_types(found.kernel_set)),
        *((f"extra {name}", _extra(name, version)) for name, version in found.extras.items()),
        ("cache folder", found.cache_folder),
        ("demo source", found.demo_checkpoint or "absent"),
        ("demo model", _demo_model(found)),
        *found.environment.items(),
        *(("warning", line) for line in found.warnings),
        *(("problem", line) for line in found.problems),
    ]
    return table(rows)


def _slow_types(kernel_set: str | None) -> str:
    """Those of the weight types that these kernels compute with plain code."""
    has_super_blocks = kernel_set != "scalar"
    return " ".join(
        kind.name for kind in BLOCK_TYPES.values()
        if kind.is_weight and kind.values > 1 and not (kind.has_integers and (kind.values <= 32 or has_super_blocks))
    )  # fmt: skip


def _demo_model(found: Diagnosis) -> str:
    if found.demo_model is None:
        return "absent"
    return found.demo_model + ("" if found.demo_model_made else " (made on first use)")


def _cores(processor: Processor) -> str:
    parts = [f"{count} {what}" for count, what in
             ((processor.physical, "physical"), (processor.logical, "logical")) if count is not None]
    if processor.usable is not None and processor.usable != processor.logical:
        parts.append(f"{processor.usable} of them for this process")
    if processor.quota is not None:
        parts.append(f"limited to {processor.quota:g} at once")
    return ", ".join(parts) or "unknown"


def _memory(memory: hardware.MachineMemory) -> str:
    parts = [f"{format_bytes(size)}{what}" for size, what in
             ((memory.total, ""), (memory.limit, " allowed to this container"), (memory.available, " available"))
             if size is not None]
    return ", ".join(parts) or "unknown"


def _kernel_state(kernels: hardware.KernelSet, in_use: str | None) -> str:
    if kernels.problem is not None:
        return f"skipped: {kernels.problem}"
    return "in use" if kernels.name == in_use else "usable"


def _extra(name: str, version: str | None) -> str:
    return f"{_EXTRAS[name]} {version}" if version else f"absent: pip install {_EXTRAS[name]}"
