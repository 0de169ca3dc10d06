"""Builds the CUDA backend without CUDA: its kernels over the emulation of cuda_emulation.h, by a C++ compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from . import c_build

CUDA = c_build.CSRC / "backend" / "cuda"
INCLUDE = [f"-I{c_build.CSRC}", f"-I{c_build.CSRC / 'include'}", f"-I{c_build.HERE}"]
NATIVE = ["-march=native"] if c_build.X86 else []  # else every fmaf is a call
FLAGS = ["-std=c++17", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-strict-aliasing",
         "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-DPF_CUDA_EMULATED", "-DPF_STATIC", *NATIVE,
         *INCLUDE]  # fmt: skip
OWN, SHARED = ["gate.c", "gate_cuda.c"], ["gate_linear.c", "gate_model.c"]  # of the gate's sources: with the CPU's gate


def sources() -> list[Path]:
    return sorted(path for path in CUDA.glob("*.cu") if not path.name.startswith("bench_"))


def cxx() -> str:
    """The C++ compiler to use; skips the test where there is none, or where fibers have not been tried."""
    if platform.system() != "Linux" or not (c_build.X86 or c_build.ARM64):
        pytest.skip("the emulation of CUDA is for Linux on x86-64 or arm64")
    for name in [os.environ.get("CXX"), "c++", "g++", "clang++"]:
        if name and shutil.which(name):
            return name
    pytest.skip("no C++ compiler (set CXX)")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _compile_all(of: list[Path], folder: Path, compile_one: Callable[[Path, Path], Path]) -> list[Path]:
    cxx()  # skips here, and not in a thread
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: compile_one(source, folder / f"{source.name}.o"), of))


def _compile_plain(source: Path, out: Path, flags: Sequence[str] = FLAGS) -> Path:
    run(cxx(), *flags, "-x", "c++", "-c", source, "-o", out)
    return out


def compile_watched(source: Path, out: Path) -> Path:
    """So that cuda_watch.cpp sees every access to shared and to the device's memory."""
    flags = [flag for flag in FLAGS if not flag.startswith("-fsanitize")]
    return _compile_plain(source, out, [*flags, "-fsanitize=thread"] if source.suffix == ".cu" else flags)


def emulated_objects(folder: Path) -> list[Path]:
    """The plugin's objects, with the emulation."""
    return _compile_all([*sources(), *sorted(c_build.HERE.glob("cuda_emulation*.cpp"))], folder, _compile_plain)


def watched_objects(folder: Path) -> list[Path]:
    """The same, with the emulation that looks for races."""
    own = [c_build.HERE / name for name in ("cuda_watch.cpp", "cuda_emulation_streams.cpp")]
    return _compile_all([*sources(), *own], folder, compile_watched)


def gate(folder: Path, objects: list[Path], native: Path) -> Path:
    """The gate's program over the emulation. native: where c_build.build() has compiled the rest of it."""
    cc, program = c_build.compiler(), folder / "gate_cuda"
    flags = [*c_build.FLAGS, "-O2", *c_build.WARNINGS, *INCLUDE, "-DPF_GATE_TOOLS_ONLY", "-DPF_CUDA_EMULATED"]
    own = [folder / f"{name}.o" for name in OWN]
    for name, out in zip(OWN, own):
        run(cc, *flags, "-c", c_build.HERE / name, "-o", out)
    rest = [native / f"{source.stem}.o" for source in c_build.sources(SHARED)]
    run(cxx(), "-pthread", *own, *rest, *objects, "-o", program, "-lm")
    return program


def plugin(folder: Path, objects: list[Path]) -> Path:
    """The plugin library over the emulation, under the real one's name."""
    library = folder / "libpyflash_cuda.so"
    run(cxx(), "-shared", *objects, "-o", library)
    return library
