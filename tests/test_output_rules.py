"""What may stand where a file is written, and what becomes of it: one table for the helper in C, which writes session files
(csrc/base/output.h), and the one in Python, which writes all others (gguf_export/outputs.py).

What only one of them does is in tests/pyflash/engine/test_session_output.py and tests/gguf_export/test_outputs.py.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyflash
from gguf_export.errors import ConvertError
from gguf_export.outputs import write_output

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and modes are POSIX's")

OLD, NEW = b"what was there before", b"new contents"
Write = Callable[[Path], None]


def a_file(here: Path, mode: int = 0o640) -> None:
    here.write_bytes(OLD)
    here.chmod(mode)


def a_link(here: Path, to: str, target: Callable[[Path], object] | None = None) -> None:
    here.symlink_to(to)
    if target is not None:
        target(here.parent / to)


def a_chain(here: Path) -> None:
    a_link(here, "second", lambda second: a_link(second, "file", a_file))


def a_link_into_another_folder(here: Path) -> None:
    (here.parent / "far").mkdir()
    a_link(here, "far/file", a_file)


def a_circle(here: Path) -> None:
    here.symlink_to("second")
    (here.parent / "second").symlink_to(here.name)


def a_socket(here: Path) -> None:
    folder = os.getcwd()
    os.chdir(here.parent)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(here.name)
    finally:
        os.chdir(folder)


# What stands at "here", and the file that holds what was written then.
WRITTEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda here: None, "here"),
    "a file": (a_file, "here"),
    "a link to a file": (lambda here: a_link(here, "file", a_file), "file"),
    "a link to a link to a file": (a_chain, "file"),
    "a link into another folder": (a_link_into_another_folder, "far/file"),
    "a link to nothing": (lambda here: a_link(here, "not there yet"), "not there yet"),
}
# What stands at "here", and is refused. Nothing changes then.
REFUSED: dict[str, Callable[[Path], object]] = {
    "a folder": lambda here: here.mkdir(),
    "a link to a folder": lambda here: a_link(here, "folder", lambda folder: folder.mkdir()),
    "a pipe": lambda here: os.mkfifo(here),
    "a link to a pipe": lambda here: a_link(here, "pipe", lambda pipe: os.mkfifo(pipe)),
    "a socket": a_socket,
    "a device": lambda here: a_link(here, "/dev/null"),
    "links in a circle": a_circle,
    "a link into no folder": lambda here: a_link(here, "nowhere/file"),
}


@pytest.fixture(params=["in C", "in Python"])
def write(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Write]:
    """Writes something to a path."""
    if request.param == "in Python":
        yield lambda path: write_output(path, NEW, streams=False)
        return
    with pyflash.Model.open(tiny_model, threads=1) as model, model.session(context=64) as session:
        session.eval([5, 6, 7])
        yield session.save


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What lies in a folder, but for an empty lock file."""
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {name: (each.st_ino, each.st_mode, each.st_size) for name, each in found.items() if not name.endswith(".lock")}


@pytest.mark.parametrize("case", WRITTEN)
def test_written(write: Write, tmp_path: Path, case: str) -> None:
    make, real = WRITTEN[case]
    make(tmp_path / "here")
    before = state(tmp_path)
    write(tmp_path / "here")
    after = state(tmp_path)
    assert (tmp_path / real).read_bytes() not in (b"", OLD)
    assert set(after) == {*before, real}
    for name, entry in before.items():
        assert name == real or name.startswith("far") or after[name] == entry  # links are what they were
    if real in before:
        assert stat.S_IMODE(after[real][1]) == 0o640  # an existing file's permissions stay


@pytest.mark.parametrize("case", REFUSED)
def test_refused(write: Write, tmp_path: Path, case: str) -> None:
    REFUSED[case](tmp_path / "here")
    before = state(tmp_path)
    with pytest.raises((pyflash.FileError, ConvertError)) as raised:
        write(tmp_path / "here")
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
    assert state(tmp_path) == before


@pytest.mark.parametrize("length", [246, 255])
def test_long_names(write: Write, tmp_path: Path, length: int) -> None:
    path = tmp_path / ("n" * length)
    for _ in range(2):
        write(path)
    assert list(state(tmp_path)) == [path.name]


def test_a_name_that_is_too_long(write: Write, tmp_path: Path) -> None:
    with pytest.raises((pyflash.FileError, ConvertError)):
        write(tmp_path / ("n" * 256))
    assert state(tmp_path) == {}
