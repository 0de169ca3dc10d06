"""The CUDA backend on machines without a GPU: its kernels over an emulation of the device, against scalar by the gate's
checks (gate_cuda.c); the package that nvcc builds of them; and what the library says of a plugin.

The emulation verifies indices, arithmetic and the places of barriers, and in the self-test's examples that nobody
touches memory without one. It verifies neither speed nor that anything runs on a device: scripts/cuda_check.sh does,
where there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import native_build
import pytest

from . import cuda_build

pytestmark = pytest.mark.device

ARCHITECTURE = "80"  # the oldest: what it lacks, a kernel must not use


@pytest.fixture(scope="module")
def gate() -> Path:
    cuda_build.require()
    return native_build.build("native", "gate_emulated") / "gate_emulated"


@pytest.mark.parametrize("options", [[], ["--copies", "--quick"]], ids=["in place", "copied"])
def test_operations_emulated(gate: Path, options: list[str]) -> None:
    """Copied: as on a device, where the gate has buffers of its own for every operation."""
    done = subprocess.run([gate, *options], capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def doctor(place: Path, objects: list[Path]) -> subprocess.CompletedProcess[str]:
    """The self-test, with a plugin of these objects."""
    from pyflash.native.library import _library_path

    cuda_build.plugin(place, objects)
    library = place / _library_path().name
    shutil.copy(_library_path(), library)
    environment = {**os.environ, "PYFLASH_LIBRARY": str(library)}
    return subprocess.run([sys.executable, "-m", "pyflash", "doctor"], env=environment, capture_output=True, text=True)


def test_races(tmp_path: Path) -> None:
    """Threads that touch the same byte, one of them to write, wait for each other, and else cuda_watch.cpp tells."""
    objects = cuda_build.watched()
    told = doctor(tmp_path, objects)
    assert told.returncode == 0 and "self-test passed" in told.stdout and told.stderr == "", told.stdout + told.stderr

    for file, barrier, said in [("topk.cu", "        __syncthreads();\n        int my_above", "two warps touch a byte"),
                                ("mhc.cu", "    __syncwarp();\n    sinkhorn", "two lanes touch a byte"),
                                ("rows.cu", "x += (int64_t)blockIdx.x * n;", "two blocks touch a byte")]:  # fmt: skip
        source = (cuda_build.CUDA / file).read_text()
        assert source.count(barrier) == 1
        (tmp_path / file).write_text(source.replace(barrier, barrier.split("\n")[-1] if "\n" in barrier else ""))
        told = doctor(tmp_path, cuda_build.instead(objects, "cuda_watched", file, tmp_path / file))
        assert told.returncode == 1 and said in told.stderr, told.stdout + told.stderr


def test_package(tmp_path: Path) -> None:
    """packaging/cuda: nvcc compiles everything, warnings being errors, and the wheel's plugin loads without a driver."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc, so that nothing says whether the kernels compile for a GPU")
    from pyflash.native.library import _library_path

    settings = [f"CMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}-real", "CMAKE_CUDA_FLAGS=-Werror all-warnings"]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, cuda_build.CSRC.parent / "packaging/cuda"]
    for setting in settings:
        command += ["-C", f"cmake.define.{setting}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (wheel,) = tmp_path.glob("pyflash_llm_cuda-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
        archive.extractall(tmp_path)
    library = Path("pyflash/lib") / _library_path().name
    assert files == ["pyflash/lib/libpyflash_cuda.so"]
    shutil.copy(_library_path(), tmp_path / library)
    environment = {**os.environ, "PYFLASH_LIBRARY": str(tmp_path / library)}
    told = subprocess.run([sys.executable, "-m", "pyflash", "doctor"], env=environment, capture_output=True, text=True).stdout
    usable = shutil.which("nvidia-smi") is not None
    assert usable or "no NVIDIA driver is installed" in told, told


# ---- The library and its plugin ----


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """A folder with a copy of libpyflash, and (ffi, lib) of that copy."""
    from pyflash.native import library

    copy = tmp_path / "libpyflash.so"
    if not library._library_path().name.endswith(".so"):
        pytest.skip("plugins are tried out on Linux")
    shutil.copy(library._library_path(), copy)
    yield tmp_path, library.ffi, library.ffi.dlopen(str(copy))


def test_no_plugin(folder: tuple[Path, Any, Any]) -> None:
    _, ffi, lib = folder
    n, err = ffi.new("int32_t *"), ffi.new("pf_error *")
    assert lib.pf_device_count(b"cuda", n, err) == lib.PF_ERR_DEVICE
    assert "not built in" in ffi.string(err.message).decode()
    assert lib.pf_device_count(b"abacus", n, err) == lib.PF_ERR_ARGUMENT


def test_broken_plugin(folder: tuple[Path, Any, Any]) -> None:
    place, ffi, lib = folder
    (place / "libpyflash_cuda.so").write_bytes(b"no library")
    n, err = ffi.new("int32_t *"), ffi.new("pf_error *")
    assert lib.pf_device_count(b"cuda", n, err) == lib.PF_ERR_DEVICE
    assert "libpyflash_cuda.so" in ffi.string(err.message).decode()


def test_plugin(folder: tuple[Path, Any, Any], cuda_objects: list[Path]) -> None:
    place, ffi, lib = folder
    cuda_build.plugin(place, cuda_objects)
    n, err, info = ffi.new("int32_t *"), ffi.new("pf_error *"), ffi.new("pf_device_info *")
    info.struct_size = ffi.sizeof("pf_device_info")
    assert lib.pf_device_count(b"cuda", n, err) == lib.PF_OK, ffi.string(err.message)
    assert n[0] == 1
    assert lib.pf_device_describe(b"cuda", 0, info, err) == lib.PF_OK
    assert ffi.string(info.name) == b"emulation" and info.total_bytes == 1 << 30
    assert lib.pf_device_describe(b"cuda", 1, info, err) == lib.PF_ERR_ARGUMENT
