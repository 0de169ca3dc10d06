"""Packages of npm that tests run, installed once into a cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

_NO_REGISTRY = (
    "ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH",
    "ERR_SOCKET_TIMEOUT", "E403", "E407", "E502", "E503", "E504",
)  # fmt: skip


def require_node(least: int, what: str) -> None:
    """Skips the test where there is no node of that version, or no npm."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip(f"{what} from npm: install node and npm to run these tests")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < least:
        pytest.skip(f"{what} from npm, which needs node {least} or newer, this is {version}")


def installed(name: str, package: bytes, arguments: Sequence[str] = (), prepare: Callable[[Path], None] = lambda folder: None,
              version: bytes = b"", seconds: int = 300) -> Path:
    """The folder that holds node_modules, kept between runs; PYFLASH_TEST_CACHE names another place for it.

    package: the package.json. arguments: of `npm install`. prepare: what is done with the new folder before it is used;
    version: changes where that does. Skips the test where the registry cannot be reached.
    """
    parent = os.environ.get("PYFLASH_TEST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(package + version).hexdigest()[:12]
    folder = Path(parent) / "pyflash-tests" / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:  # test processes side by side install once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            new = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                (new / "package.json").write_bytes(package)
                _install(new, arguments, seconds)
                prepare(new)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return folder


def _install(folder: Path, arguments: Sequence[str], seconds: int) -> None:
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline", "--fetch-retries=1",
               "--fetch-timeout=60000", *arguments]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm cannot reach its registry: no answer in {seconds} s")
    codes = [code for code in _NO_REGISTRY if f" {code}" in done.stderr]
    if done.returncode and codes:
        pytest.skip(f"npm cannot reach its registry: {', '.join(codes)}")
    assert done.returncode == 0, f"npm install failed:\n{done.stderr}"
