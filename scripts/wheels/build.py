"""Makes what a release consists of: the source distribution, of it the wheels, and of the wheels the zips."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

from wheels import cuda, zig
from wheels.targets import CUDA, CUDA_PLATFORM, TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
_DOCUMENTS = {"LICENSE": "LICENSE", "docs/embed.md": "embed.md", "CHANGELOG.md": "CHANGELOG.md"}  # in share/doc/pyflash


def version(root: Path = ROOT) -> str:
    """The project's, which CMakeLists.txt says."""
    found = re.search(r"project\(pyflash VERSION ([0-9.]+)", (root / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def time_of_commit() -> str:
    """SOURCE_DATE_EPOCH: as the caller sets it, or of the commit. Raises SystemExit outside git."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return told
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit("build_wheels: this is no git checkout: set SOURCE_DATE_EPOCH, the time that the files are of")
    return done.stdout.strip()


def _run(command: list[str | Path], log: Path, environment: dict[str, str], folder: Path) -> None:
    """Raises SystemExit with the end of the log where the command fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as out:
        done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
        raise SystemExit(f"{end}\nbuild_wheels: {command[0]} failed with {done.returncode}; all of it is in {log}")


def make_sdist(out: Path, work: Path, environment: dict[str, str]) -> Path:
    """The source distribution of this tree, in `out`."""
    _run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", out, ROOT], work / "sdist.log", environment, ROOT)
    return out / f"pyflash_llm-{version()}.tar.gz"


def unpack(sdist: Path, work: Path) -> Path:
    """The tree in a source distribution, in `work`. What was built there of the same bytes is gone on with, all else removed."""
    digest, note = hashlib.sha256(sdist.read_bytes()).hexdigest(), work / "source.sha256"
    tree = work / "source"
    if not note.is_file() or note.read_text(encoding="utf-8") != digest:
        note.unlink(missing_ok=True)
        for folder in (tree, *(work / name for name in (*TARGETS, CUDA))):
            shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(tree, filter="data")
        note.write_text(digest, encoding="utf-8")
    return tree / sdist.name.removesuffix(".tar.gz")


def _make_wheel(source: Path, out: Path, work: Path, environment: dict[str, str], settings: dict[str, str]) -> Path:
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out]
    for key, value in {"build-dir": str(work / "build"), "install.strip": "false", **settings}.items():
        command.append(f"-C{key}={value}")
    _run([*command, source], work / "build.log", environment, source)
    return max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)


def make_wheel(target: Target, source: Path, out: Path, work: Path, environment: dict[str, str]) -> Path:
    """The wheel of a target, of an unpacked source distribution, in `out`."""
    toolchain = zig.toolchain(work / target.name, target, source)
    return _make_wheel(source, out, work / target.name, environment, {
        "cmake.toolchain-file": str(toolchain), "cmake.define.PYFLASH_ALL_KERNELS": "ON", "wheel.tags": ";".join(target.tags),
    })  # fmt: skip


def make_cuda_wheel(source: Path, out: Path, work: Path, environment: dict[str, str], architectures: str | None) -> Path:
    """The CUDA plugin's wheel. architectures: of CMake, such as "90a-real"; None: all that CMakeLists.txt names."""
    settings = {f"cmake.define.{key}": value for key, value in cuda.settings(work / CUDA, source).items()}
    if architectures is not None:
        settings["cmake.define.CMAKE_CUDA_ARCHITECTURES"] = architectures
    settings["wheel.tags"] = f"py3-none-{CUDA_PLATFORM}"
    return _make_wheel(source / "packaging" / "cuda", out, work / CUDA, environment, settings)


def make_zip(wheel: Path, target: Target, source: Path, out: Path, epoch: int) -> Path:
    """What a program without Python needs, of the target's wheel: pyflash-VERSION-PLATFORM.zip."""
    name = f"pyflash-{version(source)}-{target.name}"
    with zipfile.ZipFile(wheel) as archive:
        files = {item.filename.removeprefix("pyflash/"): archive.read(item) for item in archive.infolist()
                 if item.filename.startswith(("pyflash/include/", "pyflash/lib/", "pyflash/bin/"))}  # fmt: skip
    files |= {f"share/doc/pyflash/{own}": (source / path).read_bytes() for path, own in _DOCUMENTS.items()}
    examples = sorted(path for path in (source / "examples" / "embed").iterdir() if path.is_file())
    files |= {f"share/pyflash/examples/embed/{path.name}": path.read_bytes() for path in examples}
    path = out / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for member, data in sorted(files.items()):
            item = zipfile.ZipInfo(f"{name}/{member}", _zip_time(epoch))
            item.compress_type = zipfile.ZIP_DEFLATED
            item.external_attr = (0o100755 if member == target.library else 0o100644) << 16
            item.create_system = 3
            archive.writestr(item, data)
    return path


def _zip_time(epoch: int) -> tuple[int, int, int, int, int, int]:
    """In UTC; a zip knows no time before 1980."""
    return time.gmtime(max(epoch, 315532800))[:6]


def make(names: list[str], out: Path, work: Path, architectures: str | None = None) -> list[Path]:
    """The source distribution, and the wheel and the zip of every target named; CUDA has no zip. Prints each when it is there."""
    out.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    environment = {**zig.environment(), "SOURCE_DATE_EPOCH": time_of_commit()}
    made = [make_sdist(out, work, environment)]
    print(made[0], flush=True)
    source = unpack(made[0], work)
    for name in names:
        if name == CUDA:
            new = [make_cuda_wheel(source, out, work, environment, architectures)]
        else:
            wheel = make_wheel(TARGETS[name], source, out, work, environment)
            new = [wheel, make_zip(wheel, TARGETS[name], source, out, int(environment["SOURCE_DATE_EPOCH"]))]
        print(*new, sep="\n", flush=True)
        made += new
    return made
