"""The CUDA backend on machines without a GPU: its kernels over an emulation of the device, against scalar by the gate's
checks (gate_cuda.c); nvcc's word that they compile; and what the library says of a plugin.

The emulation verifies indices, arithmetic and the places of barriers. It verifies neither races nor speed, nor that
anything runs on a device: scripts/cuda_check.sh does, where there is one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from . import c_build, cuda_build

ARCHITECTURE = "80"  # the oldest: what it lacks, a kernel must not use


@pytest.fixture(scope="module")
def gate(cuda_objects: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_build.gate(tmp_path_factory.mktemp("gate_cuda"), cuda_objects)


@pytest.mark.parametrize("options", [[], ["--copies", "--quick"]], ids=["in place", "copied"])
def test_operations_emulated(gate: Path, options: list[str]) -> None:
    """Copied: as on a device, where the gate has buffers of its own for every operation."""
    done = subprocess.run([gate, *options], capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_compiles(tmp_path: Path) -> None:
    """To PTX: the whole front end. Machine code of all architectures is what -DPYFLASH_CUDA=ON builds."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc, so that nothing says whether the kernels compile for a GPU")
    flags = ["-std=c++17", "-fmad=false", f"-arch=compute_{ARCHITECTURE}", "-ptx", "-Werror", "all-warnings",
             "-DPF_STATIC", f"-I{c_build.CSRC}", f"-I{c_build.CSRC / 'include'}"]  # fmt: skip

    def compile_one(source: Path) -> str:
        out = tmp_path / f"{source.stem}.ptx"
        done = subprocess.run([nvcc, *flags, source, "-o", out], capture_output=True, text=True)
        return done.stderr if done.returncode != 0 else ""

    with ThreadPoolExecutor(2) as pool:
        problems = [text for text in pool.map(compile_one, cuda_build.sources()) if text]
    assert not problems, "\n".join(problems)


# ---- The library and its plugin ----


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """A folder with a copy of libpyflash, and (ffi, lib) of that copy."""
    from pyflash import _native

    copy = tmp_path / "libpyflash.so"
    if not _native._library_path().name.endswith(".so"):
        pytest.skip("plugins are tried out on Linux")
    shutil.copy(_native._library_path(), copy)
    yield tmp_path, _native.ffi, _native.ffi.dlopen(str(copy))


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
