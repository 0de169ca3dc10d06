"""Trees of Debian to try a wheel in, and the removal of folders that such trees lie in."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

SUITE = "trixie"  # Debian 13
# debootstrap mounts /proc in its tree. In namespaces of its own no other process meets that mount, and where unshare is killed, all
# that it began ends with it, and the mount too: nothing writes into a tree that is being removed.
_APART: tuple[str | Path, ...] = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")


def debian(folder: Path, arch: str, packages: tuple[str, ...], debootstrap: str, run: Callable[..., str]) -> Path:
    """A tree in `folder`: to be entered with chroot where arch is this machine's, else only unpacked. Raises RuntimeError."""
    own = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    foreign = [] if arch == own else ["--foreign"]
    options = [f"--arch={arch}", "--variant=minbase", f"--include={','.join(packages)}"]
    run([*_APART, debootstrap, *foreign, *options, SUITE, folder])
    if foreign:
        _unpack_all(folder, run)
    return folder


def _unpack_all(folder: Path, run: Callable[..., str]) -> None:
    """The packages that debootstrap would unpack from within, which nothing here can run."""
    for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
        run(["dpkg-deb", "--extract", package, folder])


def mounts(folder: Path, mountinfo: str) -> list[Path]:
    """The mount points at and below a folder, of the text of /proc/self/mountinfo, where a space is written \\040."""
    points = [Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4]))
              for line in mountinfo.splitlines()]  # fmt: skip
    return sorted(point for point in points if point.is_relative_to(folder))


def remove(folder: Path) -> None:
    """Removes a folder with all in it. Raises OSError, and removes nothing, where something is mounted in it."""
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    if found := mounts(folder.resolve(), text):
        raise OSError(f"{folder} is not removed: something is mounted at {', '.join(map(str, found))}")
    shutil.rmtree(folder)
