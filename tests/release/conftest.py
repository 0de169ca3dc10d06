"""What scripts/build_wheels.py makes here: the platforms that a machine of CI has time for, and can run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
PLATFORMS = ("linux-x86_64", "linux-aarch64", "windows-x64")
EPOCH = "1700000000"

sys.path.append(str(SCRIPTS))


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The outcome, of whatever exit status."""
    place = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment}
    return subprocess.run([str(part) for part in command], env=place, capture_output=True, encoding="utf-8")


@pytest.fixture(scope="session")
def tools() -> None:
    """Skips where the extra is not installed."""
    for name in ("ziglang", "lief", "build", "cyclonedx"):
        pytest.importorskip(name, reason="pip install '.[test,wheels]'")


@pytest.fixture(scope="session")
def dist(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheels and zips of PLATFORMS. PYFLASH_TEST_DIST: one that is there."""
    if "PYFLASH_TEST_DIST" in os.environ:
        return Path(os.environ["PYFLASH_TEST_DIST"])
    out = tmp_path_factory.mktemp("release") / "dist"
    done = run(sys.executable, SCRIPTS / "build_wheels.py", "build", *PLATFORMS, "--out", out, "--work", out.parent / "work")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return out
