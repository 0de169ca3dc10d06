"""Builds the C programs of this folder straight from the sources they need.

Sources: every csrc/base/*.c, every csrc/backend/cpu/*.c except the benchmark, and this folder's own. The
vector files get their own instruction-set flags; mode "emulated" compiles the AVX-512 file against SIMDe (Debian:
libsimde-dev) instead, so that its logic runs on any AVX2 machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
FLAGS = ["-std=c11", "-g", "-ffp-contract=off", "-pthread", "-fPIC", "-DPF_STATIC"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
GATE = ["gate.c", "gate_kernels.c", "gate_linear.c", "gate_model.c"]
GLUE = ["glue.c"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
MODES = {
    "native": ["-O2", *WARNINGS],
    "sanitized": ["-O1", *SANITIZE, *WARNINGS],
    "emulated": ["-O2", "-DPF_SIMDE", "-Wno-psabi"],
}


def compiler() -> str:
    """The C compiler to use; skips the test where there is none."""
    if os.name == "nt":
        pytest.skip("the gate uses POSIX page protection")
    for name in [os.environ.get("CC"), "cc", "gcc", "clang"]:
        if name and shutil.which(name):
            return name
    pytest.skip("no C compiler (set CC)")


def sources(tests: list[str]) -> list[Path]:
    base = [CSRC / "base" / name for name in ("cpus.c", "memory.c", "pool.c", "status.c")]
    cpu = [path for path in sorted((CSRC / "backend" / "cpu").glob("*.c")) if path.name != "bench_kernels.c"]
    return base + cpu + [HERE / name for name in tests]


def _builds(cc: str, flags: list[str], folder: Path, text: str, link: bool) -> bool:
    probe = folder / "probe.c"
    probe.write_text(text)
    command = [cc, *flags, str(probe), "-o", str(folder / "probe")] + ([] if link else ["-c"])
    return subprocess.run(command, capture_output=True).returncode == 0


def build(folder: Path, mode: str) -> tuple[Path, Path]:
    """Compiles in `folder`; returns the gate's program and the glue library. Skips where the mode lacks its tools."""
    cc = compiler()
    include = [f"-I{CSRC}", f"-I{CSRC / 'include'}", f"-I{HERE}"]
    flags = [*FLAGS, *MODES[mode], *include]
    main = "int main(void) { return 0; }\n"
    if mode == "emulated" and not X86:
        pytest.skip("the emulated kernels need an x86-64 machine")
    if mode == "emulated" and not _builds(cc, AVX2, folder, "#include <simde/x86/avx512.h>\n" + main, False):
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    if mode == "sanitized" and not _builds(cc, SANITIZE, folder, main, True):
        pytest.skip(f"{cc} cannot link with {SANITIZE[0]}")

    def compile_one(source: Path) -> Path:
        isa = []
        if X86 and source.stem.endswith("_avx2"):
            isa = AVX2
        if X86 and source.stem.endswith("_avx512"):
            isa = AVX2 if mode == "emulated" else AVX512
        out = folder / f"{source.stem}.o"
        done = subprocess.run([cc, *flags, *isa, "-c", str(source), "-o", str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources([*GATE, *GLUE])))
    outputs = []
    for name, own, others in (("gate", [], GLUE), ("glue.so", ["-shared"], GATE)):
        used = [str(path) for path in objects if f"{path.stem}.c" not in others]
        command = [cc, *flags, *own, *used, "-o", str(folder / name), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(folder / name)
    return outputs[0], outputs[1]
