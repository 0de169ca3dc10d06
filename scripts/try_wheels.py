#!/usr/bin/env python3
"""Runs what scripts/build_wheels.py has made, as far as a Linux x86-64 machine can.

    python scripts/try_wheels.py dist                   # all of it
    python scripts/try_wheels.py dist --only pipx musl  # those
    python scripts/try_wheels.py --list

Each trial asks the demo model a question, greedily, and wants the answer that the installed pyflash gives. Programs in C are
examples/embed, cross-compiled against the zip. What a trial lacks is named, and the trial is "not run". Exit status 1 where an
answer differs or something fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wheels import build, trees, zig
from wheels.targets import TARGETS

QUESTION = "What is 3 + 4?"
DEPENDENCIES = ("numpy", "cffi", "click")


class NotRun(Exception):
    """What is missing, in words."""


class Trial:
    """Folders and files that the trials share."""

    def __init__(self, dist: Path, work: Path) -> None:
        self.dist, self.work = dist.resolve(), work
        self.model = work / "demo.gguf"
        self.expected = ""

    def prepare(self) -> None:
        """The demo model's file and the answer to compare with, both of the pyflash that this Python has."""
        code = "import shutil, sys; from pyflash import demo; shutil.copy(demo.path(), sys.argv[1])"
        self.run([sys.executable, "-c", code, self.model])
        self.expected = self.run([sys.executable, "-m", "pyflash", "run", self.model, "--temp", "0", QUESTION]).strip()

    def run(self, command: list[str | Path], **environment: str) -> str:
        """What the command prints. Raises RuntimeError where it fails."""
        done = subprocess.run([str(part) for part in command], cwd=self.work, env={**os.environ, **environment},
                              capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=500)  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        return done.stdout

    def same(self, answer: str) -> None:
        if answer.replace("\r", "").strip() != self.expected:
            raise RuntimeError(f"it answers {answer.strip()!r}, and not {self.expected!r}")

    def one(self, pattern: str) -> Path:
        """The one file of the release that fits."""
        found = sorted(self.dist.glob(pattern))
        if len(found) != 1:
            raise NotRun(f"{self.dist} has {len(found) or 'no'} {pattern}")
        return found[0]

    def wheel(self, platform: str) -> Path:
        return self.one(f"pyflash_llm-*-{TARGETS[platform].tags[0].replace('py3-none-', 'py3-none-*')}*.whl")

    def wheelhouse(self, name: str, *platforms: str, python: str) -> Path:
        """A folder with the wheels that pyflash needs on a platform, from the index that pip knows."""
        folder = self.work / f"wheels-{name}"
        chosen = [f"--platform={platform}" for platform in platforms]
        abis = [f"--abi={abi}" for abi in (f"cp{python}", "none", "abi3")]
        self.run([sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--implementation=cp", *abis,
                  f"--python-version={python}", *chosen, "-d", folder, *DEPENDENCIES])  # fmt: skip
        return folder

    def program(self, platform: str) -> Path:
        """examples/embed for a platform, built against its zip."""
        target, folder = TARGETS[platform], self.work / f"embed-{platform}"
        archive = self.one(f"pyflash-*-{platform}.zip")
        shutil.unpack_archive(archive, folder)
        toolchain = zig.toolchain(folder / "tools", target, build.ROOT)
        prefix = folder / archive.stem
        environment = zig.environment()
        for command in (
            ["cmake", "-S", prefix / "share/pyflash/examples/embed", "-B", folder / "build", "-G", "Ninja",
             f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=BOTH",
             # zig's stub of musl has stdout and stderr at one address: a program that copies data from it would mix them up.
             "-DCMAKE_POSITION_INDEPENDENT_CODE=ON", "-DCMAKE_BUILD_TYPE=Release"],
            ["cmake", "--build", folder / "build"],
        ):  # fmt: skip
            self.run(command, **environment)
        (found,) = [path for path in (folder / "build").iterdir() if path.name in ("embed", "embed.exe")]
        return found


def _need(program: str, package: str) -> str:
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/lib/wine:/usr/sbin")
    if found is None:
        raise NotRun(f"there is no {program} (Debian: {package})")
    return found


# ---- Trials ----


def here(trial: Trial) -> None:
    """the wheel in a fresh virtual environment, without a compiler"""
    venv = trial.work / "venv"
    trial.run([sys.executable, "-m", "venv", venv])
    trial.run([venv / "bin/pip", "install", "-q", trial.wheel("linux-x86_64")], CC="/bin/false", CXX="/bin/false")
    trial.same(trial.run([venv / "bin/pyflash", "run", trial.model, "--temp", "0", QUESTION]))


def source(trial: Trial) -> None:
    """the source distribution, compiled in a fresh virtual environment"""
    venv = trial.work / "venv-source"
    trial.run([sys.executable, "-m", "venv", venv])
    trial.run([venv / "bin/pip", "install", "-q", trial.one("pyflash_llm-*.tar.gz")])
    trial.same(trial.run([venv / "bin/pyflash", "run", trial.model, "--temp", "0", QUESTION]))


def pipx(trial: Trial) -> None:
    """`pipx install`"""
    folder = trial.work / "pipx"
    places = {"PIPX_HOME": str(folder), "PIPX_BIN_DIR": str(folder / "bin"), "PIPX_MAN_DIR": str(folder / "man")}
    trial.run([_need("pipx", "pipx; PyPI: pipx"), "install", trial.wheel("linux-x86_64")], **places)
    trial.same(trial.run([folder / "bin/pyflash", "run", trial.model, "--temp", "0", QUESTION]))


def uv(trial: Trial) -> None:
    """`uv tool install`"""
    folder = trial.work / "uv"
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin"), "UV_PYTHON_DOWNLOADS": "never"}
    house = trial.wheelhouse(
        "uv", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", python=f"{sys.version_info[0]}{sys.version_info[1]}"
    )
    trial.run([_need("uv", "none; PyPI: uv"), "tool", "install", "-q", "--python", sys.executable, "--no-index",
               "--find-links", house, trial.wheel("linux-x86_64")], **places)  # fmt: skip
    trial.same(trial.run([folder / "bin/pyflash", "run", trial.model, "--temp", "0", QUESTION]))


def native(trial: Trial) -> None:
    """a C program against the zip, Linux x86-64"""
    trial.same(trial.run([trial.program("linux-x86_64"), trial.model, "--temp", "0", QUESTION], LD_LIBRARY_PATH=""))


def arm64(trial: Trial) -> None:
    """a C program against the zip, Linux arm64, under qemu"""
    qemu = _need("qemu-aarch64", "qemu-user")
    root = Path("/usr/aarch64-linux-gnu")
    if not (root / "lib/ld-linux-aarch64.so.1").exists():
        raise NotRun("there is no C library of arm64 (Debian: libc6-arm64-cross)")
    trial.same(trial.run([qemu, "-cpu", "max", "-L", root, trial.program("linux-aarch64"), trial.model, "--temp", "0", QUESTION]))


def musl(trial: Trial) -> None:
    """a C program against the zip, Linux x86-64 with musl"""
    loader = Path("/lib/ld-musl-x86_64.so.1")
    if not loader.exists():
        raise NotRun("there is no musl (Debian: musl)")
    trial.same(trial.run([trial.program("musllinux-x86_64"), trial.model, "--temp", "0", QUESTION]))


def windows(trial: Trial) -> None:
    """a C program against the zip, Windows x64, under Wine"""
    wine, server = _need("wine64", "wine64"), _need("wineserver", "wine64")
    program = trial.program("windows-x64")
    places = {"WINEPREFIX": str(trial.work / "wine"), "WINEDEBUG": "-all"}
    try:
        trial.same(trial.run([wine, program, "demo.gguf", "--temp", "0", QUESTION], **places))
    finally:  # it outlives the program, and would write into a folder that is being removed
        subprocess.run([server, "-k"], env={**os.environ, **places}, check=False, timeout=60)


def debian(trial: Trial) -> None:
    """the wheel in a fresh Debian 13, which has no compiler"""
    tree = trees.debian(trial.work / "debian", "amd64", ("python3-venv",), _need("debootstrap", "debootstrap"), trial.run)
    house = trial.wheelhouse("debian", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", python="313")
    for path in (trial.wheel("linux-x86_64"), *house.iterdir(), trial.model):
        shutil.copy(path, tree / "root")
    name = trial.wheel("linux-x86_64").name
    commands = f"""
        ! command -v cc gcc clang
        python3 -m venv .venv && .venv/bin/pip install -q --no-index --find-links . ./{name}
        .venv/bin/pyflash run demo.gguf --temp 0 '{QUESTION}'"""
    trial.same(
        trial.run(["chroot", tree, "/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/root", "sh", "-ec", f"cd /root{commands}"])
    )


def debian_arm64(trial: Trial) -> None:
    """the wheel in a Debian 13 of arm64, under qemu"""
    qemu = _need("qemu-aarch64", "qemu-user")
    tree = trees.debian(
        trial.work / "debian-arm64", "arm64", ("python3", "python3-pip"), _need("debootstrap", "debootstrap"), trial.run
    )
    house = trial.wheelhouse("arm64", "manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", python="313")
    site = trial.work / "arm64-site"
    python: list[str | Path] = [qemu, "-cpu", "max", "-L", tree, tree / "usr/bin/python3.13"]
    trial.run(
        [*python, "-m", "pip", "install", "-q", "--no-index", "--find-links", house, "--target", site, trial.wheel("linux-aarch64")]
    )
    trial.same(trial.run([*python, "-m", "pyflash", "run", trial.model, "--temp", "0", QUESTION], PYTHONPATH=str(site)))


TRIALS: dict[str, Callable[[Trial], None]] = {
    "here": here, "source": source, "pipx": pipx, "uv": uv, "native": native, "arm64": arm64, "musl": musl, "windows": windows,
    "debian": debian, "debian-arm64": debian_arm64,
}  # fmt: skip


def _try(name: str, trial: Trial) -> bool:
    begin = time.monotonic()
    try:
        TRIALS[name](trial)
        how, why = "passed ", ""
    except NotRun as missing:
        how, why = "not run", f": {missing}"
    except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        how, why = "FAILED ", f": {error}"
    print(f"{how}  {time.monotonic() - begin:4.0f} s  {name:13} {TRIALS[name].__doc__}{why}", flush=True)
    return how != "FAILED "


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dist", type=Path, nargs="?", default=build.ROOT / "dist", help="the folder of the release (default: dist)")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="TRIAL", help="these trials")
    parser.add_argument("--list", action="store_true", help="print the trials")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(f"{name:14}{trial.__doc__}" for name, trial in TRIALS.items()), sep="\n")
        return 0
    work = Path(tempfile.mkdtemp(prefix="pyflash-try-"))
    try:
        trial = Trial(arguments.dist, work)
        trial.prepare()
        print(f"the answer: {trial.expected}")
        return 0 if all([_try(name, trial) for name in arguments.only]) else 1
    finally:
        trees.remove(work)


if __name__ == "__main__":
    sys.exit(main())
