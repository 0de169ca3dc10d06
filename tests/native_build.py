"""Builds the tests' C programs (tests/programs.cmake) in folders that stay, so that only what has changed is compiled:
build/tests/ of the source tree, one folder for each kind of build and set of tools."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM64 = platform.machine().lower() in ("aarch64", "arm64")
CROSS = "aarch64-linux-gnu-gcc"

_CHECKED = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_FLAGS_DEBUG=-O1 -g"]
MODES = {
    "native": ["-DCMAKE_BUILD_TYPE=RelWithDebInfo"],
    "sanitized": [*_CHECKED, "-DPYFLASH_SANITIZE=address,undefined", "-DCMAKE_C_FLAGS=-DPF_NO_VBMI"],  # "native" has it
    "races": [*_CHECKED, "-DPYFLASH_SANITIZE=thread"],
    "emulated": ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DPYFLASH_EMULATE_AVX512=ON"],  # by SIMDe, on any AVX2 machine
    "arm64": ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCMAKE_C_COMPILER={CROSS}", "-DCMAKE_SYSTEM_NAME=Linux",
              "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static"],  # for qemu-user
}  # fmt: skip


def _tool(names: list[str | None], missing: str) -> str:
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    return found or pytest.skip(missing)


def compiler() -> str:
    """The C compiler to use; skips the test where there is none."""
    if os.name == "nt":
        pytest.skip("the tests' C programs are for POSIX systems")
    return _tool([os.environ.get("CC"), "cc", "gcc", "clang"], "no C compiler (set CC)")


def cxx() -> str:
    """The C++ compiler to use; skips the test where there is none."""
    return _tool([os.environ.get("CXX"), "c++", "g++", "clang++"], "no C++ compiler (set CXX)")


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """A command that has to succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


def _builds(cc: str, flags: list[str], text: str = "int main(void) { return 0; }\n") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.c").write_text(text)
        command = [cc, *flags, "probe.c", "-o", "probe"]
        return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def _require(mode: str, cc: str) -> None:
    """Skips the test where the mode lacks its tools."""
    if mode == "emulated" and not X86:
        pytest.skip("the emulated kernels need an x86-64 machine")
    probe = "#include <simde/x86/avx512.h>\nint main(void) { return 0; }\n"
    if mode == "emulated" and not _builds(cc, ["-mavx2", "-mfma", "-mf16c", "-c"], probe):
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    if mode == "arm64" and not shutil.which(CROSS):
        pytest.skip(f"no {CROSS} (Debian: gcc-aarch64-linux-gnu)")
    if mode == "arm64" and not _builds(CROSS, ["-static"]):
        pytest.skip(f"{CROSS} has no libc to link with (Debian: libc6-dev-arm64-cross)")
    for option in MODES[mode]:
        if "SANITIZE=" in option and not _builds(cc, [f"-fsanitize={option.split('=')[1]}"]):
            pytest.skip(f"{cc} cannot link with -fsanitize={option.split('=')[1]}")


def _folder(mode: str, tools: list[str]) -> Path:
    """Where to build: of its own for other tools, for CMake holds to those that it has begun with."""
    versions = [subprocess.run([tool, "--version"], capture_output=True, text=True).stdout for tool in tools]
    key = hashlib.sha256("\0".join([*map(os.path.realpath, tools), *versions]).encode()).hexdigest()[:8]
    parent = ROOT / "build"
    if not os.access(parent if parent.exists() else ROOT, os.W_OK):
        parent = Path(tempfile.gettempdir()) / f"pyflash-build-{hashlib.sha256(bytes(ROOT)).hexdigest()[:8]}"
    return parent / "tests" / f"{mode}-{key}"


def build(mode: str, *targets: str) -> Path:
    """Builds targets of tests/programs.cmake; returns their folder. Processes side by side wait for one another. Skips
    the test where the mode lacks its tools."""
    cc = compiler()
    _require(mode, cc)
    import fcntl  # nowhere but where compiler() lets tests go on

    cmake, ninja = _tool(["cmake"], "no cmake"), _tool(["ninja"], "no ninja")
    folder = _folder(mode, [cc, cmake, ninja])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "build.ninja").is_file():
            chosen = [] if mode == "arm64" else [f"-DCMAKE_C_COMPILER={cc}"]
            run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DPYFLASH_TESTS=ON",
                "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *chosen, *MODES[mode])  # fmt: skip
        run(cmake, "--build", folder, "-j", "2", "--target", *targets)
    return folder


def _commands(folder: Path, target: str) -> dict[Path, list[str]]:
    """Object: how it is compiled, of each source of a target."""
    commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
    every = [shlex.split(command["command"]) for command in commands]
    return {folder / parts[parts.index("-o") + 1]: parts for parts in every
            if f"/{target}.dir/" in f"/{parts[parts.index('-o') + 1]}"}  # fmt: skip


def objects(folder: Path, target: str) -> list[Path]:
    """The objects of a target that build() has made in the folder."""
    return list(_commands(folder, target))


def compile_instead(folder: Path, target: str, source: Path, changed: Path, out: Path) -> Path:
    """Compiles `changed` to `out` as the target's `source` is."""
    parts = next(parts for parts in _commands(folder, target).values() if parts[parts.index("-c") + 1] == str(source))
    parts[parts.index("-o") + 1], parts[parts.index("-c") + 1] = str(out), str(changed)
    run(*parts, f"-I{source.parent}", cwd=folder)
    return out
