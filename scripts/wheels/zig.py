"""PyPI's ziglang as a cross compiler: a CMake toolchain for each target."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from wheels.targets import Target

# What zig calls the one -march that CMakeLists.txt gives for ARM.
_SPELLING = {"-march=armv8.2-a+dotprod": "-mcpu=generic+v8_2a+dotprod"}


def program() -> Path:
    """The zig program of the installed ziglang. Raises SystemExit where it is not installed."""
    try:
        import ziglang
    except ImportError:
        raise SystemExit("build_wheels: ziglang is not installed: pip install '.[wheels]'") from None
    return Path(ziglang.__file__).parent / "zig"


def version() -> str:
    return subprocess.run([program(), "version"], capture_output=True, text=True, check=True).stdout.strip()


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def compiler(folder: Path, zig_target: str, language: str = "cc") -> Path:
    """A compiler command for zig's target, written into the folder. language: "cc" or "c++"."""
    arguments = '"$@"'
    if zig_target.startswith("aarch64"):
        for ours, theirs in _SPELLING.items():
            arguments = f'"${{@/#{ours}/{theirs}}}"'
    command = shlex.join([str(program()), language, "-target", zig_target])
    return _script(folder / f"zig-{language.replace('+', 'x')}", f"exec {command} {arguments}")


def toolchain(folder: Path, target: Target, source: Path) -> Path:
    """Writes the toolchain of a target into the folder. source: the tree that is built, whose path stays out of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_C_COMPILER": compiler(folder, target.zig),
        "CMAKE_AR": _script(folder / "zig-ar", f'exec {shlex.quote(str(program()))} ar "$@"'),
        "CMAKE_RANLIB": _script(folder / "zig-ranlib", f'exec {shlex.quote(str(program()))} ranlib "$@"'),
        "CMAKE_C_FLAGS_INIT": f"-g0 -ffile-prefix-map={source}=.",
        "CMAKE_SHARED_LINKER_FLAGS_INIT": "-s",
        "CMAKE_FIND_ROOT_PATH_MODE_LIBRARY": "NEVER",
    }
    if target.format == "elf":
        settings["CMAKE_SHARED_LINKER_FLAGS_INIT"] = "-s -Wl,-z,relro -Wl,-z,now"
    if target.format == "macho":
        # zig signs what it links, and writes the install name: nothing may change the file afterwards.
        settings["CMAKE_INSTALL_NAME_TOOL"] = _script(folder / "zig-install-name", 'echo "install_name_tool $*" >&2; exit 1')
        settings["CMAKE_OSX_DEPLOYMENT_TARGET"] = ""  # it is a part of zig's target
        settings["CMAKE_OSX_SYSROOT"] = ""
    path = folder / "toolchain.cmake"
    path.write_text("".join(f'set({key} "{value}")\n' for key, value in settings.items()), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """For a build: the caller's, without settings of other compilers and builds; this Python's programs come first."""
    others = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_ARGS", "CMAKE_GENERATOR", "CMAKE_TOOLCHAIN_FILE")
    kept = {name: value for name, value in os.environ.items() if name not in others and not name.startswith("SKBUILD_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"}
