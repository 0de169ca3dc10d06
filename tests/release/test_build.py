"""scripts/build_wheels.py: what it makes passes its checks, runs where it can be run here, and is the same bytes again."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import EPOCH, PLATFORMS, SCRIPTS, run

pytestmark = pytest.mark.wheels


def test_what_is_made(dist: Path) -> None:
    names = {path.name.replace("0.1.0", "VERSION") for path in dist.iterdir()}
    assert names == {
        "pyflash_llm-VERSION.tar.gz",
        "pyflash_llm-VERSION-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "pyflash_llm-VERSION-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        "pyflash_llm-VERSION-py3-none-win_amd64.whl",
        *(f"pyflash-VERSION-{name}.zip" for name in PLATFORMS),
    }
    done = run(sys.executable, SCRIPTS / "build_wheels.py", "check", *dist.iterdir())
    assert done.returncode == 0 and done.stdout.count("good  ") == len(names), done.stdout


@pytest.mark.parametrize("trial", ["here", "native", "arm64", "windows"])
def test_it_runs(dist: Path, trial: str) -> None:
    done = run(sys.executable, SCRIPTS / "try_wheels.py", dist, "--only", trial)
    if "not run" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


def test_the_same_bytes_again(dist: Path, tmp_path: Path) -> None:
    """The source distribution, and what is made of a wheel; whole wheels are compared when a release is made twice."""
    from wheels import build
    from wheels.targets import TARGETS

    (wheel,) = dist.glob("*manylinux_2_17_x86_64*.whl")
    (old,) = dist.glob("*linux-x86_64.zip")
    new = build.make_zip(wheel, TARGETS["linux-x86_64"], build.ROOT, tmp_path, int(EPOCH))
    assert hashlib.sha256(new.read_bytes()).digest() == hashlib.sha256(old.read_bytes()).digest()
    done = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", tmp_path, build.ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    (sdist,) = dist.glob("*.tar.gz")
    assert (tmp_path / sdist.name).read_bytes() == sdist.read_bytes()


def test_a_build_that_fails_says_why(tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wheels import build, zig
    from wheels.targets import TARGETS

    source = tmp_path / "source"
    (source / "csrc").mkdir(parents=True)
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(build.ROOT / name, source)
    with pytest.raises(SystemExit, match=r"(?s)pyflashConfig\.cmake\.in does not exist.*all of it is in .*build\.log"):
        build.make_wheel(TARGETS["linux-x86_64"], source, tmp_path / "out", tmp_path / "work", zig.environment())


def test_a_release_starts_from_nothing(tools: None, tmp_path: Path) -> None:
    (tmp_path / "old.whl").touch()
    done = run(sys.executable, SCRIPTS / "build_wheels.py", "release", "--out", tmp_path)
    assert done.returncode == 1 and done.stderr == f"build_wheels: {tmp_path} is not empty: a release starts from nothing\n"
