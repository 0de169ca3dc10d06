"""What the build puts into the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyflash
from pyflash.native.library import installed_file, lib

ROOT = Path(__file__).resolve().parents[2]


def test_one_wheel_for_every_python() -> None:
    distribution = importlib.metadata.distribution("pyflash-llm")
    assert re.search(r"^Tag: py3-none-(?!any)", distribution.read_text("WHEEL") or "", flags=re.MULTILINE)
    for package in ("pyflash", "quantize", "gguf_export"):
        assert importlib.util.find_spec(package) is not None


def test_types() -> None:
    """mypy, strict, as pyproject.toml sets it."""
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


HEADERS = sorted((ROOT / "csrc" / "include").iterdir())


def test_installed_headers_are_these() -> None:
    for header in HEADERS:
        installed = installed_file("include", header.name)
        assert installed is not None and installed.read_bytes() == header.read_bytes()


def test_pyflash_h_includes_every_public_header() -> None:
    text = (ROOT / "csrc" / "include" / "pyflash.h").read_text(encoding="utf-8")
    included = re.findall(r'^#include "(.+)"$', text, flags=re.MULTILINE)
    assert sorted(included) == [header.name for header in HEADERS if header.name != "pyflash.h"]
    listed = re.findall(r"csrc/include/(\w+\.h)$", (ROOT / "CMakeLists.txt").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == [header.name for header in HEADERS]


def test_versions_agree() -> None:
    match = re.search(r"project\(pyflash VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert match is not None and pyflash.__version__ == match[1]
    assert lib.pf_abi_version() == lib.PF_ABI_VERSION


def test_every_declared_function_is_exported() -> None:
    header = "\n".join(header.read_text(encoding="utf-8") for header in HEADERS)
    names = re.findall(r"^PF_API [^;(]*?(pf_\w+)\(", header, flags=re.MULTILINE)
    assert len(names) > 40
    for name in names:
        getattr(lib, name)


def test_cmake_lists_every_source() -> None:
    """CMakeLists.txt globs nothing; programs such as benchmarks and fuzz targets are not part of the library."""
    listed = set(re.findall(r"csrc/\S+\.c\b", (ROOT / "CMakeLists.txt").read_text()))
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.c")}
    programs = {path for path in present if re.search(r"(^|_)(bench|fuzz)", Path(path).name.replace(".c", ""))}
    assert listed - programs == present - programs


def test_library_of_another_abi_is_refused(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    (tmp_path / "other.c").write_text("int pf_abi_version(void) { return 999; }\n")
    library = tmp_path / "libother.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "other.c", "-o", library], check=True)
    environment = {**os.environ, "PYFLASH_LIBRARY": str(library)}
    done = subprocess.run([sys.executable, "-m", "pyflash", "doctor"], capture_output=True, text=True, cwd=tmp_path,
                          env=environment)  # fmt: skip
    assert done.returncode == 1 and "ABI version 999" in done.stderr


@pytest.mark.parametrize("way", ["module", "script"])
def test_library_that_does_not_load_is_one_line(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-m", "pyflash"]
    if way == "script":
        script = shutil.which("pyflash", path=str(Path(sys.executable).parent))
        if script is None:
            pytest.skip("the command is not beside this Python")
        command = [script]
    (tmp_path / "bad.so").write_text("no library")
    for library in (tmp_path / "none.so", tmp_path / "bad.so", tmp_path):
        done = subprocess.run([*command, "doctor"], capture_output=True, text=True, cwd=tmp_path,
                              env={**os.environ, "PYFLASH_LIBRARY": str(library)})  # fmt: skip
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("pyflash: error: cannot load") and done.stderr.count("\n") == 1
        assert str(library) in done.stderr


def test_library_that_does_not_load_is_told_to_programs(tmp_path: Path) -> None:
    for program in ("import pyflash; pyflash.Model", "from pyflash import Model", "import pyflash.engine.session"):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
                              env={**os.environ, "PYFLASH_LIBRARY": str(tmp_path / "none.so")})  # fmt: skip
        assert done.returncode == 1 and "\nImportError: cannot load" in done.stderr, done


def test_library_of_somebody_else_is_refused(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    (tmp_path / "other.c").write_text("int something(void) { return 1; }\n")
    library = tmp_path / "libother.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "other.c", "-o", library], check=True)
    done = subprocess.run([sys.executable, "-m", "pyflash", "doctor"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYFLASH_LIBRARY": str(library)})  # fmt: skip
    assert done.returncode == 1 and done.stderr == f"pyflash: error: {library} is no libpyflash\n"
