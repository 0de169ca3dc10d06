"""What `pyflash doctor` tells: the installation, the machine, and settings that cannot work."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from pyflash import demo
from pyflash.machine import hardware
from pyflash.machine.info import table
from pyflash.machine.places import cache_dir
from pyflash.machine.processor import Processor, processor
from pyflash.machine.units import format_bytes
from pyflash.native.errors import Error
from pyflash.native.library import __version__, installed_file

_PACKAGES = ("numpy", "cffi", "click")
_EXTRAS = {"grammar": "llguidance"}  # the extra of pyflash and what it brings
_PREFIX = "PYFLASH_"
_OTHER_VARIABLES = ("PYFLASH_CPU", "PYFLASH_CACHE", "PYFLASH_STATE", "PYFLASH_LIBRARY", "PYFLASH_DEMO")


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


def diagnose(cli: click.Group, environment: Mapping[str, str]) -> Diagnosis:
    """Looks at everything. cli: the command line, whose options may be set by variables."""
    kernels = tuple(hardware.kernel_sets())
    usable = [each.name for each in kernels if each.problem is None]
    kernel_set: str | None = environment.get("PYFLASH_CPU") or usable[0]
    ours = {name: value for name, value in sorted(environment.items()) if name.startswith(_PREFIX)}
    problems, warnings = _bad_options(cli, ours)
    warnings += _odd_variables(cli, ours)
    if kernel_set not in usable:
        problems.append(f"PYFLASH_CPU is {kernel_set!r}, which cannot be used here, so that models will not open: "
                        f"unset it, or set it to {' or '.join(usable)}")
        kernel_set = None
    folder = cache_dir()
    warnings += _bad_folder(folder)
    checkpoint, model = _demo(warnings)
    limits = _limits()
    warnings += _bad_limits(limits)
    return Diagnosis(
        version=__version__, library=str(environment.get("PYFLASH_LIBRARY") or installed_file("lib")
                                         or installed_file("bin") or "not found"),
        python=f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}", processor=processor(),
        memory=hardware.memory(), kernels=kernels, kernel_set=kernel_set,
        devices=hardware.devices(), packages={name: _version(name) for name in _PACKAGES},
        extras={extra: _version(package) for extra, package in _EXTRAS.items()}, cache_folder=str(folder),
        demo_checkpoint=checkpoint, demo_model=model, demo_model_made=model is not None and os.path.isfile(model), limits=limits, environment=ours,
        problems=tuple(problems), warnings=tuple(warnings),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- settings --


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Parameter, click.Context]]:
    """(variable, option, context) of every option that a variable can set."""
    for parameter in command.params:
        variables = parameter.envvar
        for variable in [variables] if isinstance(variables, str) else variables or ():
            yield variable, parameter, context
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _options(inner, click.Context(inner, parent=context, info_name=name))


def _bad_options(cli: click.Group, ours: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Values that an option refuses: problems where `run` does, else warnings; one line for each variable."""
    problems: dict[str, str] = {}
    warnings: dict[str, str] = {}
    for variable, option, context in _options(cli, click.Context(cli, info_name="pyflash")):
        refusal = _refusal(option, context) if ours.get(variable) else None
        if refusal is None:
            continue
        what = f"{variable} cannot be {ours[variable]!r}"
        if context.info_name == "run":
            problems[variable] = f"{what}: {refusal}"
        else:
            warnings.setdefault(variable, f"{what} for {context.command_path}: {refusal}")
    return list(problems.values()), [line for variable, line in warnings.items() if variable not in problems]


def _refusal(option: click.Parameter, context: click.Context) -> str | None:
    """Why the option does not take what its variable says, and the way out; None when it does."""
    try:
        with context.scope(cleanup=False):
            option.process_value(context, option.value_from_envvar(context))
    except click.UsageError as error:
        return f"{error.message.rstrip('.')}: change or unset it"
    except Error as error:
        return str(error)
    return None


def _odd_variables(cli: click.Group, ours: Mapping[str, str]) -> Iterator[str]:
    known = {*_OTHER_VARIABLES, *(name for name, _, _ in _options(cli, click.Context(cli)))}
    for name in ours.keys() - known:
        near = difflib.get_close_matches(name.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in known], 1)
        hint = f", did you mean {_PREFIX}{near[0]}" if near else ""
        yield f"{name} has no effect: pyflash knows no such variable{hint}"
    model = ours.get("PYFLASH_MODEL")
    if model and not os.path.isfile(model):
        yield f"PYFLASH_MODEL names {model!r}, which is no file: change or unset it"


def _demo(warnings: list[str]) -> tuple[str | None, str | None]:
    """The demo model's checkpoint and its GGUF's place."""
    try:
        return str(demo.checkpoint()), str(demo.file())
    except Error as error:
        warnings.append(str(error))
        return None, None


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
               "may be refused: use a smaller --ctx, or set it to 0")


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
        *((f"extra {name}", _extra(name, version)) for name, version in found.extras.items()),
        ("cache folder", found.cache_folder),
        ("demo source", found.demo_checkpoint or "absent"),
        ("demo model", _demo_model(found)),
        *found.environment.items(),
        *(("warning", line) for line in found.warnings),
        *(("problem", line) for line in found.problems),
    ]
    return table(rows)


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
