"""Builds the C programs of this folder straight from the sources they need.

Sources: csrc/base/*.c, csrc/format/dtypes.c, every csrc/backend/cpu/*.c except the benchmarks, and this folder's own.
The vector files get their own instruction-set flags; mode "emulated" compiles the AVX-512 file against SIMDe (Debian:
libsimde-dev) instead, so that its logic runs on any AVX2 machine. Mode "arm64" is a cross build of the gate for qemu-user
(Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM64 = platform.machine().lower() in ("aarch64", "arm64")
CROSS = "aarch64-linux-gnu-gcc"

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
FLAGS = ["-std=c11", "-g", "-ffp-contract=off", "-pthread", "-fPIC", "-DPF_STATIC"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AMX = ["-mamx-tile", "-mamx-int8"]
NEON_DOT = ["-march=armv8.2-a+dotprod"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
GATE = ["gate.c", "gate_fp4.c", "gate_kernels.c", "gate_linear.c", "gate_model.c"]
GLUE = ["glue.c"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
MODES = {
    "native": ["-O2", *WARNINGS],
    "sanitized": ["-O1", "-DPF_NO_VBMI", *SANITIZE, *WARNINGS],  # "native" has them
    "emulated": ["-O2", "-DPF_SIMDE", "-Wno-psabi"],
    "arm64": ["-O2", *WARNINGS],
}


def compiler() -> str:
    """The C compiler to use; skips the test where there is none."""
    if os.name == "nt":
        pytest.skip("the gate uses POSIX page protection")
    for name in [os.environ.get("CC"), "cc", "gcc", "clang"]:
        if name and shutil.which(name):
            return name
    pytest.skip("no C compiler (set CC)")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], list[Path]]) -> list[Path]:
    """What make() makes in the folder that it is given, once for all of a run's processes: others wait for it."""
    import fcntl  # nowhere but where compiler() lets tests go on

    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"built-{name}"
    folder.mkdir(exist_ok=True)
    made = folder / "made.txt"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_text("\n".join(str(path) for path in make(folder)))
    return [Path(line) for line in made.read_text().splitlines()]


def sources(tests: list[str]) -> list[Path]:
    base = [CSRC / "base" / name for name in ("cpus.c", "fork.c", "memory.c", "pool.c", "status.c")]
    cpu = [path for path in sorted((CSRC / "backend" / "cpu").glob("*.c")) if not path.name.startswith("bench_")]
    return [*base, CSRC / "format" / "dtypes.c", *cpu, *(HERE / name for name in tests)]


def _builds(cc: str, flags: list[str], folder: Path, text: str, link: bool) -> bool:
    probe = folder / "probe.c"
    probe.write_text(text)
    command = [cc, *flags, str(probe), "-o", str(folder / "probe")] + ([] if link else ["-c"])
    return subprocess.run(command, capture_output=True).returncode == 0


def isa_flags(source: Path, mode: str, flags: list[str]) -> list[str]:
    if (X86 and mode != "arm64") and source.stem.endswith("_avx2"):
        return AVX2
    if (X86 and mode != "arm64") and source.stem.endswith("_avx512"):
        return AVX2 if mode == "emulated" else AVX512
    if (X86 and mode != "arm64") and source.stem.endswith("_avx512_vbmi"):
        return AVX2 if mode == "emulated" else [*AVX512, "-mavx512vbmi"]
    if X86 and "-DPF_AMX" in flags and source.stem.endswith("_amx"):
        return [*AVX512, *AMX]
    if (ARM64 or mode == "arm64") and source.stem.endswith("_neon_dot"):
        return NEON_DOT
    return []


def build(folder: Path, mode: str) -> list[Path]:
    """Compiles in `folder`, SOURCE.c to SOURCE.o; returns the gate's program and the glue library (which mode arm64
    does not build). Skips where the mode lacks its tools."""
    if mode == "arm64" and not shutil.which(CROSS):
        pytest.skip(f"no {CROSS} (Debian: gcc-aarch64-linux-gnu)")
    cc = CROSS if mode == "arm64" else compiler()
    include = [f"-I{CSRC}", f"-I{CSRC / 'include'}", f"-I{HERE}"]
    flags = [*FLAGS, *MODES[mode], *include]
    main = "int main(void) { return 0; }\n"
    if mode == "emulated" and not X86:
        pytest.skip("the emulated kernels need an x86-64 machine")
    if mode == "emulated" and not _builds(cc, AVX2, folder, "#include <simde/x86/avx512.h>\n" + main, False):
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    if mode == "arm64" and not _builds(cc, ["-static"], folder, main, True):
        pytest.skip(f"{cc} has no libc to link with (Debian: libc6-dev-arm64-cross)")
    if mode == "sanitized" and not _builds(cc, SANITIZE, folder, main, True):
        pytest.skip(f"{cc} cannot link with {SANITIZE[0]}")

    if X86 and mode in ("native", "sanitized") and _builds(cc, AMX, folder, main, False):
        flags.append("-DPF_AMX")

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        command = [cc, *flags, *isa_flags(source, mode, flags), "-c", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources([*GATE, *GLUE])))
    outputs = []
    static = ["-static"] if mode == "arm64" else []  # needs no libraries of that machine
    for name, own, others in (("gate", static, GLUE), ("glue.so", ["-shared"], GATE)):
        if mode == "arm64" and name == "glue.so":
            outputs.append(folder / name)
            continue
        used = [str(path) for path in objects if f"{path.stem}.c" not in others]
        command = [cc, *flags, *own, *used, "-o", str(folder / name), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(folder / name)
    return outputs
