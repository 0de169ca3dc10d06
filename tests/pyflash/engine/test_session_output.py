"""Where a session is saved: what may stand at the path, what stays, and who keeps whom out. csrc/base/output.h."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyflash
from pyflash.native.library import lib

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, devices and modes of POSIX systems")

OLD = b"what was there before"
Make = Callable[[Path], object]


@pytest.fixture
def saved(session: pyflash.Session) -> Iterator[pyflash.Session]:
    session.eval([5, 6, 7])
    yield session


def holds(path: Path, session: pyflash.Session) -> bool:
    """Whether a session of the same tokens can be loaded from a path."""
    with session.model.session(context=1000) as other:
        other.load(path)
        return bool(np.array_equal(other.tokens, session.tokens))


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".pyflash-")}


def link(path: Path, to: object) -> None:
    path.symlink_to(str(to))


def circle(path: Path) -> None:
    link(path, "other")
    link(path.parent / "other", path.name)


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket's address
    try:
        server.bind(path.name)
    finally:
        os.chdir(before)
    return server


def protected(path: Path) -> None:
    path.write_bytes(OLD)
    path.chmod(0o444)


# What stands at "here", words of the refusal. Nothing changes, and nothing is left beside.
REFUSED: dict[str, tuple[Make, str]] = {
    "a folder": (lambda here: here.mkdir(), "it is a folder"),
    "a pipe": (lambda here: os.mkfifo(here), "device, pipe or socket"),
    "a socket": (listening, "device, pipe or socket"),
    "a link to a device": (lambda here: link(here, "/dev/null"), "device, pipe or socket"),
    "a link to a folder": (lambda here: (here.parent / "f").mkdir() or link(here, "f"), "it is a folder"),
    "a link to a link to a pipe": (
        lambda here: (os.mkfifo(here.parent / "p"), link(here.parent / "l", "p"), link(here, "l")), "device, pipe"
    ),
    "links in a circle": (circle, "circle"),
    "a link into no folder": (lambda here: link(here, "nowhere/file"), "no such file or folder"),
    "a link out of a file": (
        lambda here: ((here.parent / "f").write_bytes(OLD), link(here, "f/file")), "is not a folder"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("use", ["save", "hold"])
def test_refused(saved: pyflash.Session, tmp_path: Path, make: Make, words: str, use: str) -> None:
    kept = make(tmp_path / "here")
    before = {path: path.lstat() for path in tmp_path.rglob("*")}
    with pytest.raises(pyflash.FileError, match=words) as raised:
        getattr(saved, use)(tmp_path / "here")
    assert "\n" not in str(raised.value)
    after = {path: path.lstat() for path in tmp_path.rglob("*")}
    assert {p: (s.st_ino, s.st_mode, s.st_size) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mode, s.st_size) for p, s in before.items()
    }
    del kept


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/stdout", "/proc/self/fd/1"])
def test_devices_are_never_replaced(saved: pyflash.Session, path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"no {path}")
    before = os.stat(path)
    if stat.S_ISREG(before.st_mode):
        pytest.skip("a file here")
    with pytest.raises(pyflash.FileError, match="device, pipe or socket|circle|refused"):
        saved.save(path)
    assert os.stat(path).st_rdev == before.st_rdev and stat.S_IFMT(os.stat(path).st_mode) == stat.S_IFMT(before.st_mode)


@pytest.mark.parametrize("name", ["here/", "", "."])
def test_names_of_no_file(saved: pyflash.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pyflash.FileError):
        saved.save(name)
    assert list(tmp_path.iterdir()) == []


# What stands at "here", the file that holds the session afterwards, and its mode.
TAKEN: dict[str, tuple[Make, str, int]] = {
    "nothing": (lambda here: None, "here", 0o600),
    "a file": (lambda here: here.write_bytes(OLD), "here", 0o640),
    "a private file": (lambda here: here.write_bytes(OLD), "here", 0o600),
    "an open file": (lambda here: here.write_bytes(OLD), "here", 0o666),
    "a link to a file": (lambda here: ((here.parent / "f").write_bytes(OLD), link(here, "f")), "f", 0o660),
    "a link that leads nowhere": (lambda here: link(here, "f"), "f", 0o600),
    "a link to a link into a folder": (
        lambda here: ((here.parent / "d").mkdir(), link(here.parent / "l", "d/f"), link(here, "l")), "d/f", 0o600
    ),
    "an absolute link": (
        lambda here: ((here.parent / "f").write_bytes(OLD), link(here, here.parent / "f")), "f", 0o640
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "name", "mode"), TAKEN.values(), ids=TAKEN)
def test_taken(saved: pyflash.Session, tmp_path: Path, make: Make, name: str, mode: int) -> None:
    here, target = tmp_path / "here", tmp_path / name
    make(here)
    was_link = here.is_symlink() and os.readlink(here)
    if target.exists():
        target.chmod(mode)
    before = os.umask(0)  # a mode of the umask's making would show
    try:
        for _ in range(2):
            saved.save(here)
            assert stat.S_IMODE(target.stat().st_mode) == mode and not target.is_symlink()
    finally:
        os.umask(before)
    assert (here.is_symlink() and os.readlink(here)) == was_link
    assert holds(here, saved) and holds(target, saved)
    assert not beside(tmp_path) and not beside(target.parent)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_owner_stays(saved: pyflash.Session, tmp_path: Path) -> None:
    file = tmp_path / "here"
    file.write_bytes(OLD)
    os.chown(file, 12345, 23456)
    file.chmod(0o640)
    saved.save(file)
    info = file.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (12345, 23456, 0o640)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anything")
def test_write_protection_counts(saved: pyflash.Session, tmp_path: Path) -> None:
    protected(tmp_path / "here")
    with pytest.raises(pyflash.FileError, match="write-protected"):
        saved.save(tmp_path / "here")
    (tmp_path / "folder").mkdir(0o500)
    for use in (saved.save, saved.hold):
        with pytest.raises(pyflash.FileError, match="permission denied"):
            use(tmp_path / "folder" / "here")


AS_ANOTHER_USER = """
import os, sys, pyflash
folder = sys.argv[2]
session = pyflash.Model.open(sys.argv[1], threads=1).session(context=100)
session.eval([5])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for name in ("protected", "of others", "closed/new", "unreadable/new", "new"):
    for use in (session.hold, session.save):
        try:
            use(f"{folder}/{name}")
            print("ok")
        except pyflash.FileError as error:
            print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_as_another_user(tiny_model: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        for file, owner, mode in (("protected", 65534, 0o444), ("of others", 1234, 0o666)):
            (folder / file).write_bytes(OLD)
            os.chown(folder / file, owner, owner)
            (folder / file).chmod(mode)
        for inner, mode in (("closed", 0o500), ("unreadable", 0o300)):
            (folder / inner).mkdir()
            os.chown(folder / inner, 65534, 65534)
            (folder / inner).chmod(mode)
        done = subprocess.run([sys.executable, "-c", AS_ANOTHER_USER, str(tiny_model), name], capture_output=True,
                              text=True, timeout=60)  # fmt: skip
        lines = done.stdout.splitlines()
        assert all("write-protected" in line for line in lines[:2]), lines + [done.stderr]
        assert all("permission denied" in line for line in lines[4:6]), lines
        assert lines[2:4] == lines[6:8] == lines[8:] == ["ok", "ok"]
        kept = (folder / "of others").stat()  # its group could not stay, and so has no permissions
        assert (kept.st_uid, kept.st_gid, stat.S_IMODE(kept.st_mode)) == (65534, 65534, 0o606)
        assert (folder / "protected").read_bytes() == OLD and not beside(folder)


@pytest.mark.parametrize("length", [1, 200, 245, 246, 254, 255, 256])
def test_long_names(saved: pyflash.Session, tmp_path: Path, length: int) -> None:
    file = tmp_path / ("n" * length)
    if length > 255:
        with pytest.raises(pyflash.FileError, match="too long"):
            saved.save(file)
        return
    saved.hold(file)
    saved.save(file)
    saved.save(file)
    saved.hold(None)
    assert holds(file, saved) and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_long_paths(saved: pyflash.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that just fits leaves no room for a longer helper's beside it."""
    most = os.pathconf(tmp_path, "PC_PATH_MAX") - 1
    folder = str(tmp_path)
    while len(folder) + 201 < most:
        folder += "/" + "f" * min(200, most - len(folder) - 3)
        os.mkdir(folder)
    path = folder + "/" + "n" * (most - len(folder) - 1)
    assert len(path) == most
    saved.save(path)
    saved.save(path)
    assert os.listdir(folder) == [os.path.basename(path)]


def test_data_and_folder_reach_the_disk_in_order(tiny_model: Path, tmp_path: Path) -> None:
    """fsync of the file, rename, fsync of the folder, as the system saw them."""
    from shutil import which

    if which("strace") is None:
        pytest.skip("no strace")
    code = "import sys, pyflash\ns = pyflash.Model.open(sys.argv[1]).session()\ns.eval([5])\ns.save(sys.argv[2])"
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=fsync,rename,renameat,renameat2", "-o", str(trace)]
    command += [sys.executable, "-c", code, str(tiny_model), str(tmp_path / "here")]
    if subprocess.run(command, timeout=120).returncode != 0:
        pytest.skip("strace does not work here")
    calls = [line.split()[1].split("(")[0] for line in trace.read_text().splitlines() if "(" in line]
    assert [call.rstrip("2") for call in calls] == ["fsync", "renameat", "fsync"]


def test_failed_save_leaves_the_old_file(saved: pyflash.Session, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    file = tmp_path / "here"
    saved.save(file)
    before, saved_bytes = resource.getrlimit(resource.RLIMIT_FSIZE), file.read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(pyflash.FileError):
            saved.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == saved_bytes and [path.name for path in tmp_path.iterdir()] == ["here"]
    saved.save(file)


def test_leftovers_of_a_killed_process_are_used_up(saved: pyflash.Session, tmp_path: Path) -> None:
    file = tmp_path / "here"
    for ending in ("lock", "tmp"):
        (tmp_path / helper_name(file.name, ending)).write_bytes(b"left over")
    saved.save(file)
    assert holds(file, saved) and not beside(tmp_path)


def helper_name(name: str, ending: str) -> str:
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f".pyflash-{value:016x}.{ending}"


# -- two of them --


def test_second_session_does_not_lose_the_first_ones_turns(model: pyflash.Model, tmp_path: Path) -> None:
    file = tmp_path / "here"
    with model.session(context=1000) as one, model.session(context=1000) as two:
        one.eval([5, 6])
        one.save(file)
        two.load(file)
        two.eval([7])
        two.save(file)
        one.eval([8])
        with pytest.raises(pyflash.FileError, match="changed it"):
            one.save(file)
        assert holds(file, two) and not beside(tmp_path)
        one.save(tmp_path / "another")
        one.load(file)
        one.save(file)
        two.eval([9])
        two.save(tmp_path / "." / "here")  # nothing new was in it
        with pytest.raises(pyflash.FileError, match="changed it"):
            os.symlink(file, tmp_path / "link")
            one.save(tmp_path / "link")  # another path to the same file
        file.unlink()
        one.save(file)  # nothing to lose


def test_a_file_not_met_is_replaced(model: pyflash.Model, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(OLD)
    with model.session(context=1000) as one, model.session(context=1000) as two:
        one.save(tmp_path / "here")
        two.eval([5])
        two.save(tmp_path / "here")
        assert holds(tmp_path / "here", two)


def test_held_file(model: pyflash.Model, tmp_path: Path) -> None:
    file = tmp_path / "here"
    with model.session(context=1000) as one, model.session(context=1000) as two:
        one.hold(file)
        one.hold(file)
        for use in (two.save, two.hold):
            with pytest.raises(pyflash.FileError, match="another process or session keeps it"):
                use(file)
        assert not file.exists()
        one.eval([5])
        one.save(file)
        one.save(file)
        two.load(file)  # reading does no harm
        with pytest.raises(pyflash.FileError, match="keeps it"):
            two.save(file)
        one.hold(None)
        two.save(file)
        two.hold(tmp_path / "other")
        two.hold(file)
        one.hold(tmp_path / "other")
    assert not beside(tmp_path)


def test_holding_expects_what_stood_there(model: pyflash.Model, tmp_path: Path) -> None:
    """As on file systems without locks, where somebody may write all the same."""
    file = tmp_path / "here"
    with model.session(context=1000) as one:
        one.hold(file)
        file.write_bytes(OLD)
        with pytest.raises(pyflash.FileError, match="changed it"):
            one.save(file)
        assert file.read_bytes() == OLD


HOLDER = """
import sys, pyflash
session = pyflash.Model.open(sys.argv[1], precision="exact", threads=1).session(context=1000)
session.hold(sys.argv[2])
session.eval([5])
session.save(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process(model: pyflash.Model, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "here"
    command = [sys.executable, "-c", HOLDER, str(tiny_model), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with model.session(context=1000) as mine:
            mine.load(file)
            with pytest.raises(pyflash.FileError, match="keeps it"):
                mine.save(file)
            other.kill()  # leaves its lock's file, but not the lock
            other.wait(30)
            mine.save(file)
    assert not beside(tmp_path)


# -- what computed it --


def test_origin(model: pyflash.Model, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "here"
    own = model.info.cpu_isa
    with model.session(context=1000) as one, model.session(context=1000) as two:
        assert one.origin == pyflash.Origin("", 0, 0)
        one.eval([5, 6])
        one.save(file)
        two.load(file)
        assert two.origin == pyflash.Origin(own, lib.PF_ARITHMETIC_VERSION, 0) and not caplog.records
    if own == "scalar":
        pytest.skip("one kernel set only")
    with pyflash.Model.open(tiny_model, precision="exact", threads=1, isa="scalar") as scalar:
        with scalar.session(context=1000) as other:
            other.load(file)
            assert other.origin == pyflash.Origin(own, lib.PF_ARITHMETIC_VERSION, 2)
            (record,) = caplog.records
            assert record.levelname == "WARNING" and own in record.getMessage() and "scalar" in record.getMessage()
            other.eval([7])
            other.save(file)  # by scalar kernels, but not all of it
            assert other.origin.n_foreign == 2
        with scalar.session(context=1000) as other:
            other.load(file)
            assert other.origin == pyflash.Origin("scalar", lib.PF_ARITHMETIC_VERSION, 2)
            other.rollback(2)
            assert other.origin.n_foreign == 1
            other.rollback(1)
            other.eval([5])
            other.save(file)
            other.load(file)
            assert other.origin == pyflash.Origin("scalar", lib.PF_ARITHMETIC_VERSION, 0)


def without_origin(data: bytes) -> bytes:
    """A file of format 4 as format 2 had it, for rows of whole 8-byte words, no checkpoint or note, and nothing that drafts."""
    import struct

    body = data[:8] + struct.pack("<I", 2) + data[12:64] + data[120:-32]
    total = 0
    for word in struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]):
        total = ((total ^ word) * 0x100000001B3) % 2**64
        total ^= total >> 32
    return body + struct.pack("<Q", total)


def test_files_of_the_format_before(model: pyflash.Model, tmp_path: Path, caplog: Any) -> None:
    file = tmp_path / "here"
    with model.session(context=1000, cache="f32") as one, model.session(context=1000, cache="f32") as two:
        one.eval([5, 6])
        one.save(file)
        wanted = one.eval([7])
        file.write_bytes(without_origin(file.read_bytes()))
        two.load(file)
        assert two.origin == pyflash.Origin("", 0, 0) and not caplog.records
        assert np.array_equal(two.eval([7]), wanted)
        two.save(file)
        two.load(file)
        assert two.origin.kernels == model.info.cpu_isa
