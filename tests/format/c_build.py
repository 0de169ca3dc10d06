"""Builds the C test programs of this folder straight from the sources they need, with sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"

BASE = ["base/status.c", "base/memory.c", "base/pool.c", "base/cpus.c", "base/pages.c", "base/faults.c",
        "base/faults.c", "base/file.c", "base/fork.c", "base/output.c", "base/output_posix.c", "base/paths.c"]
GGUF = ["format/dtypes.c", "format/gguf.c", "format/gguf_parse.c", "format/gguf_values.c"]
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion"]


def compiler() -> str:
    """The C compiler to use; skips the test where there is none."""
    for name in [os.environ.get("CC"), "cc", "gcc", "clang"]:
        if name and shutil.which(name):
            return name
    pytest.skip("no C compiler (set CC)")


def build(folder: Path, name: str, tests: list[str], sources: list[str], sanitize: str) -> Path:
    """Compiles tests/format/`tests` with csrc/`sources` into folder/name; skips where the sanitizer is missing."""
    cc = compiler()
    flags = ["-g", "-O1", "-pthread", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if subprocess.run([cc, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True).returncode != 0:
        pytest.skip(f"{cc} cannot link -fsanitize={sanitize}")
    files = [str(CSRC / s) for s in sources]
    files += [str(HERE / t) for t in tests]
    out = folder / name
    include = [f"-I{CSRC}", f"-I{CSRC / 'include'}", "-DPF_STATIC"]
    command = [cc, *flags, *WARNINGS, *include, *files, "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def run(program: Path, *args: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a test program; sanitizers end it with a report on stderr and a failing status."""
    env = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(program), *map(str, args)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=env, **options
    )
    return done
