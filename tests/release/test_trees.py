"""scripts/wheels/trees.py: nothing that is mounted is ever removed, and a tree's maker leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SCRIPTS

pytestmark = pytest.mark.wheels

INFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:21 / /tmp/a\\040tree/debian/proc rw - proc proc rw
41 22 0:22 / /tmp/a\\040tree rw - tmpfs tmpfs rw
42 22 0:23 / /tmp/a\\040tree2 rw - tmpfs tmpfs rw
"""
REMOVE = "import sys; from pathlib import Path; from wheels import trees; trees.remove(Path(sys.argv[1]))"


def test_the_mounts_in_a_folder() -> None:
    from wheels import trees

    assert trees.mounts(Path("/tmp/a tree"), INFO) == [Path("/tmp/a tree"), Path("/tmp/a tree/debian/proc")]
    assert trees.mounts(Path("/tmp/a tree/debian"), INFO) == [Path("/tmp/a tree/debian/proc")]
    assert trees.mounts(Path("/tmp/a"), INFO) == []


def test_a_link_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    from wheels import trees

    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    trees.remove(tmp_path / "tree")
    assert not (tmp_path / "tree").exists() and (tmp_path / "kept" / "file").exists()


def _apart(script: str, *arguments: Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """A shell script in the namespaces that a tree is made in. Skips where this user may not have them."""
    from wheels import trees

    if subprocess.run([*trees._APART, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount")
    return subprocess.run([*trees._APART, "sh", "-ec", script, "sh", *arguments], cwd=SCRIPTS, capture_output=True, text=True,
                          timeout=seconds)  # fmt: skip


def test_a_tree_with_a_mount_stays(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "first").touch()
    done = _apart(f'mount -t tmpfs none "$1/inner"; touch "$1/inner/file"; {sys.executable} -c "{REMOVE}" "$1" && exit 9;'
                  ' test -e "$1/inner/file" && echo kept', tree)  # fmt: skip
    assert f"{tree} is not removed: something is mounted at {tree}/inner" in done.stderr
    assert (done.returncode, done.stdout) == (0, "kept\n") and (tree / "first").exists()


def test_a_maker_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    """Neither the mount nor a process that goes on writing."""
    from wheels import trees

    (tmp_path / "proc").mkdir()
    with pytest.raises(subprocess.TimeoutExpired):
        _apart('mount -t proc proc "$1/proc"; (while :; do date >"$1/written"; sleep 0.05; done) & wait', tmp_path, seconds=1.5)
    assert (tmp_path / "written").exists() and trees.mounts(tmp_path, Path("/proc/self/mountinfo").read_text()) == []
    (tmp_path / "written").unlink(missing_ok=True)
    subprocess.run(["sleep", "0.5"], check=True)
    assert not (tmp_path / "written").exists() and [*(tmp_path / "proc").iterdir()] == []
