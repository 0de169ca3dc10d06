"""Builds the CUDA backend without CUDA: its kernels over the emulation of cuda_emulation.h, by a C++ compiler."""

from __future__ import annotations

import platform
from pathlib import Path

import native_build
import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
CUDA = CSRC / "backend" / "cuda"


def require() -> None:
    """Skips the test where there is no C++ compiler, or where fibers have not been tried."""
    if platform.system() != "Linux" or not (native_build.X86 or native_build.ARM64):
        pytest.skip("the emulation of CUDA is for Linux on x86-64 or arm64")
    native_build.cxx()


def emulated() -> list[Path]:
    """The plugin's objects, with the emulation."""
    require()
    return native_build.objects(native_build.build("native", "cuda_emulated"), "cuda_emulated")


def watched() -> list[Path]:
    """The same, with the emulation that looks for races."""
    require()
    folder = native_build.build("native", "cuda_watched", "cuda_watch")
    return native_build.objects(folder, "cuda_watched") + native_build.objects(folder, "cuda_watch")


def instead(objects: list[Path], target: str, file: str, changed: Path) -> list[Path]:
    """The objects of a target with that of csrc/backend/cuda/`file` made of another source, compiled beside it."""
    folder = native_build.build("native", target)
    own = next(path for path in objects if path.name == f"{file}.o")
    wrong = native_build.compile_instead(folder, target, CUDA / file, changed, changed.with_suffix(".o"))
    return [path for path in objects if path != own] + [wrong]


def plugin(folder: Path, objects: list[Path]) -> Path:
    """The plugin library over the emulation, under the real one's name."""
    library = folder / "libpyflash_cuda.so"
    native_build.run(native_build.cxx(), "-shared", *objects, "-o", library)
    return library
