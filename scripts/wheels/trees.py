"""Trees of Debian to try a wheel in."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

SUITE = "trixie"  # Debian 13


def debian(folder: Path, arch: str, packages: tuple[str, ...], debootstrap: str, run: Callable[..., str]) -> Path:
    """A tree in `folder`: to be entered with chroot where arch is this machine's, else only unpacked. Raises RuntimeError."""
    own = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    foreign = [] if arch == own else ["--foreign"]
    # In a mount namespace of its own: where it is cut off, its /proc goes with it, and whoever removes the tree meets no mount.
    run(
        [
            "unshare",
            "--mount",
            debootstrap,
            *foreign,
            f"--arch={arch}",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            SUITE,
            folder,
        ]
    )
    if foreign:
        _unpack_all(folder, run)
    return folder


def _unpack_all(folder: Path, run: Callable[..., str]) -> None:
    """The packages that debootstrap would unpack from within, which nothing here can run."""
    for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
        run(["dpkg-deb", "--extract", package, folder])
