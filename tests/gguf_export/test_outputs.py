"""What stands at the name of an output, and what becomes of it: one table for the helper."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gguf_export import outputs, workplace
from gguf_export.errors import ConvertError
from gguf_export.outputs import find_place, make_room, output_file, output_files, resumable_file, write_output
from gguf_export.workplace import Workplace

NEW, OLD = b"new contents", b"old"

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions, pipes and links are POSIX's")
as_root = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="makes a device of its own")


def tree(folder: Path) -> list[str]:
    return sorted(os.path.relpath(os.path.join(place, name), folder)
                  for place, folders, files in os.walk(folder) for name in folders + files)


@pytest.fixture
def reader() -> Iterator[Callable[[Path], Callable[[], bytes]]]:
    """Reads a pipe while it is written."""
    threads = []

    def start(path: Path) -> Callable[[], bytes]:
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
        thread.start()
        threads.append(thread)

        def result() -> bytes:
            thread.join(20)
            return found[0]

        return result

    yield start


# -- the table: (what stands there, what is kept where) --


def nothing(path: Path) -> Path:
    return path


def a_file(path: Path) -> Path:
    path.write_bytes(OLD)
    return path


def a_link(path: Path) -> Path:
    """Also into another folder: the work has to be there, too."""
    (path.parent / "far").mkdir()
    real = path.parent / "far" / "real"
    real.write_bytes(OLD)
    path.symlink_to(real)
    return real


def a_relative_chain(path: Path) -> Path:
    real = a_link(path.parent / "second")
    path.symlink_to("second")
    return real


def a_dangling_link(path: Path) -> Path:
    path.symlink_to(path.parent / "not there yet")
    return path.parent / "not there yet"


def a_dangling_chain(path: Path) -> Path:
    path.symlink_to("second")
    return a_dangling_link(path.parent / "second")


def below_a_linked_folder(path: Path) -> Path:
    (path.parent / "real").mkdir()
    path.parent.joinpath("linked").symlink_to("real")
    return path.parent / "real" / "out"


@posix
@pytest.mark.parametrize("make", [nothing, a_file, a_link, a_relative_chain, a_dangling_link, a_dangling_chain,
                                  below_a_linked_folder])  # fmt: skip
@pytest.mark.parametrize("streams", [False, True])
def test_where_a_file_goes(tmp_path: Path, make: Callable[[Path], Path], streams: bool) -> None:
    path = tmp_path / "out"
    real = make(path)
    if make is below_a_linked_folder:
        path = tmp_path / "linked" / "out"
    before = set(tree(tmp_path))
    is_link = path.is_symlink()
    with output_file(path, streams=streams) as file:
        file.write(NEW)
        file.flush()
        assert not real.exists() or real.read_bytes() == OLD
        assert {entry.parent for entry in tmp_path.rglob(".*.part")} == {real.parent}
    assert real.read_bytes() == NEW and path.is_symlink() == is_link
    assert set(tree(tmp_path)) == before | {os.path.relpath(real, tmp_path)}


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_a_folder(path: Path) -> None:
    (path.parent / "folder").mkdir()
    path.symlink_to("folder")


def a_circle(path: Path) -> None:
    path.symlink_to("second")
    (path.parent / "second").symlink_to(path.name)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        folder = os.getcwd()
        os.chdir(path.parent)  # a socket's path may not be long
        try:
            made.bind(path.name)
        finally:
            os.chdir(folder)


def a_read_only_file(path: Path) -> None:
    path.write_bytes(OLD)
    path.chmod(0o444)


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("no folder/file")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_disk(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 250))


def a_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@posix
@pytest.mark.parametrize("make, streams, words", [
    *[(make, streams, words) for streams in (False, True) for make, words in (
        (a_folder, "is a folder"), (a_link_to_a_folder, "is a folder"), (a_circle, "round in a circle"),
        (a_socket, "is a socket"), (a_read_only_file, "is read-only"), (a_link_to_nowhere, "there is no folder"))],
    (a_pipe, False, "is a pipe"),
    pytest.param(a_device, False, "is a device", marks=as_root),
    pytest.param(a_disk, False, "is a disk", marks=as_root), pytest.param(a_disk, True, "is a disk", marks=as_root),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, make: Callable[[Path], None], streams: bool, words: str) -> None:
    path = tmp_path / "out"
    try:
        make(path)
    except PermissionError:
        pytest.skip("no device can be made here")
    before = [(name, os.lstat(tmp_path / name)[:6]) for name in tree(tmp_path)]
    with pytest.raises(ConvertError, match=words) as caught:
        write_output(path, NEW, streams=streams)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert [(name, os.lstat(tmp_path / name)[:6]) for name in tree(tmp_path)] == before


@posix
def test_a_pipe_is_written_through(tmp_path: Path, reader: Callable[[Path], Callable[[], bytes]]) -> None:
    a_pipe(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        read = reader(tmp_path / name)
        write_output(tmp_path / name, NEW)
        assert read() == NEW and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert tree(tmp_path) == ["link", "pipe"]


@as_root
def test_a_device_stays_one(tmp_path: Path) -> None:
    try:
        a_device(tmp_path / "null")
    except PermissionError:
        pytest.skip("no device can be made here")
    try:
        write_output(tmp_path / "null", NEW)
    except ConvertError as error:
        assert "not permitted" in str(error) or "denied" in str(error)  # mounted without devices
    assert stat.S_ISCHR(os.lstat(tmp_path / "null").st_mode) and tree(tmp_path) == ["null"]


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_own_streams(tmp_path: Path, name: str, into: str) -> None:
    """A file that a stream writes to is not replaced behind its back."""
    if not os.path.exists(name):
        pytest.skip(f"there is no {name} here")
    program = ("import sys; from gguf_export.outputs import write_output\n"
               "print('before', flush=True); write_output(sys.argv[1], b'between\\n'); print('after')")
    command = [sys.executable, "-c", program, name]
    if into == "pipe":
        found = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True).stdout
    else:
        with open(tmp_path / "out", "wb") as file:
            subprocess.run(command, stdout=file, timeout=60, check=True)
        found = (tmp_path / "out").read_bytes()
    assert found.split() == [b"before", b"between", b"after"]
    with open(tmp_path / "f", "wb") as file, pytest.raises(ConvertError, match="is an open stream"):
        find_place(f"/dev/fd/{file.fileno()}")


@pytest.mark.parametrize("name, words", [
    ("", "cannot be empty"), ("a\0b", "zero byte"), ("\ud800x", "no file can have"),
    ("no/such/folder", "there is no folder"),
    ("x" * 256, "too long"), (".", "is a folder"), ("..", "is a folder"), ("../", "is a folder")])  # fmt: skip
def test_names_that_are_none(tmp_path: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name.startswith("\ud800") and sys.platform == "win32":
        pytest.skip("a name there")
    with pytest.raises(ConvertError, match=words):
        write_output(name, NEW)
    assert tree(tmp_path) == []


@posix
@pytest.mark.parametrize("name", [
    *(bytes([120]) * n for n in (1, 239, 240, 241, 246, 255)), b"caf\xc3\xa9 " * 36, b"latin \xe9\xff", b"\xff" * 255,
    ("日" * 85).encode(), b"a\nb", b" ", b".hidden", b"-o", b"tail."])  # fmt: skip
def test_names_of_any_kind(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    try:
        path.touch()
    except OSError:
        pytest.skip("no name here")
    path.unlink()
    for contents in (OLD, NEW):
        write_output(path, contents)
        assert os.listdir(os.fsencode(tmp_path)) == [name] and path.read_bytes() == contents
    with output_files([find_place(path)], [5], path.name) as (work,):
        work.write_bytes(b"again")
    assert os.listdir(os.fsencode(tmp_path)) == [name] and path.read_bytes() == b"again"


@posix
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o640, 0o755, 0o222])
def test_permissions_are_kept(tmp_path: Path, mode: int) -> None:
    path = a_file(tmp_path / "out")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    before = path.stat()
    write_output(path, NEW, private=True)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


@posix
def test_permissions_are_not_given_to_another_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_file(tmp_path / "out")
    path.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(path, -1, 2345)
    else:
        pytest.skip("makes a file of another group")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    write_output(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("private, mode", [(False, 0o640), (True, 0o600)])
def test_permissions_of_a_new_file(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        write_output(tmp_path / "out", NEW, private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


@posix
def test_other_hard_links_keep_the_old_contents(tmp_path: Path) -> None:
    path = a_file(tmp_path / "out")
    os.link(path, tmp_path / "other")
    write_output(path, NEW)
    assert (tmp_path / "other").read_bytes() == OLD and path.stat().st_nlink == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
@pytest.mark.parametrize("make", [nothing, a_file])
def test_errors_leave_what_was(tmp_path: Path, make: Callable[[Path], Path], error: type[BaseException]) -> None:
    path = make(tmp_path / "out")
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    expected = ConvertError if isinstance(error, OSError) else error
    with pytest.raises(expected), output_file(path) as file:
        file.write(NEW)
        raise error
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        with output_files([find_place(path)], [3], "out"):
            raise error
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    source = a_file(tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    for name in ("source", "link"):
        with pytest.raises(ConvertError, match="made from"):
            write_output(tmp_path / name, NEW, inputs=[source])
    with pytest.raises(ConvertError, match="the same file"):
        outputs.check_distinct([find_place(source), find_place(tmp_path / "link")])
    assert source.read_bytes() == OLD


@posix
def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="something else"), output_file(tmp_path / "out") as file:
        file.write(NEW)
        a_pipe(tmp_path / "out")
    assert tree(tmp_path) == ["out"] and stat.S_ISFIFO(os.lstat(tmp_path / "out").st_mode)


@pytest.mark.skipif(sys.platform == "darwin", reason="has another call")
def test_a_file_is_flushed_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def note(module: object, name: str) -> None:
        done = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: (steps.append(name), done(*arguments))[1])

    note(os, "fsync")
    note(outputs, "flush_folder")
    note(os, "replace")
    write_output(tmp_path / "out", NEW)
    assert steps[:3] == ["fsync", "replace", "flush_folder"]
    steps.clear()
    with output_files([find_place(tmp_path / name) for name in "ab"], [1, 1], "a"):
        pass
    assert steps[:2] == ["fsync", "fsync"] and steps.count("replace") == 2 and steps.count("flush_folder") == 2


@posix
def test_space_is_asked_for_where_the_data_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = a_link(tmp_path / "out")
    asked = []

    def usage(folder: str) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(outputs.shutil, "disk_usage", usage)
    places = [find_place(tmp_path / "out"), find_place(tmp_path / "far" / "more")]
    make_room(places, [400, 500])
    with pytest.raises(ConvertError, match="free some space") as caught:
        make_room(places, [500, 600])
    assert set(asked) == {str(real.parent)} and str(real.parent) in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="asks Linux")
def test_a_mounted_file_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be renamed over, which would come out at the very end."""
    path = a_file(tmp_path / "out")
    assert outputs._is_mounted("/proc") and not outputs._is_mounted(str(path))
    monkeypatch.setattr(outputs, "_is_mounted", lambda real: real == str(path))
    with pytest.raises(ConvertError, match="is mounted there"):
        write_output(path, NEW)


# -- what killed processes leave --

KILLED = """
import os, signal, sys
from gguf_export.outputs import find_place, output_file, output_files, resumable_file
how, path = sys.argv[1:]
if how == "one":
    with output_file(path) as file:
        file.write(b"half")
        file.flush()
        print(flush=True)
        sys.stdin.readline()
elif how == "set":
    with output_files([find_place(path), find_place(path + "2")], [5, 5], os.path.basename(path)):
        print(flush=True)
        sys.stdin.readline()
else:
    with resumable_file(find_place(path), 8, {"seed": 1}) as (work, state):
        print(state.done, flush=True)
        if state.done is None:
            work.write_bytes(b"half....")
            state.record([4])
        sys.stdin.readline()
        work.write_bytes(work.read_bytes()[:4] + b"done")
"""


def start(how: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", KILLED, how, str(path)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.first = process.stdout.readline().strip()  # type: ignore[attr-defined]
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize("how", ["one", "set"])
@pytest.mark.parametrize("name", ["out", "x" * 255])
def test_only_dead_work_goes(tmp_path: Path, how: str, name: str) -> None:
    path = tmp_path / (name if how == "one" else name[:-1])
    other = tmp_path / ".somebody.01234567.part"
    other.mkdir()
    theirs = tmp_path / f".{path.name[:100]}.0123.part"
    theirs.touch()
    dead, alive = start(how, path), start(how, path)
    kill(dead)
    kept = {other.name, theirs.name}
    assert len(set(tree(tmp_path)) & {entry.name for entry in tmp_path.glob(".*.part")} - kept) == 2
    write_output(path, NEW)
    left = {entry.name for entry in tmp_path.glob(".*.part")} - kept
    assert len(left) == 1 and other.is_dir() and theirs.is_file()
    alive.communicate("\n", timeout=60)
    assert alive.returncode == 0 and path.read_bytes() != NEW
    assert not {entry.name for entry in tmp_path.glob(".*.part")} - kept


def test_what_was_killed_before_it_had_a_lock(tmp_path: Path) -> None:
    empty, ours = tmp_path / ".out.01234567.part", tmp_path / ".out.89abcdef.part"
    empty.mkdir()
    ours.mkdir()
    (ours / "file").touch()  # no workplace
    write_output(tmp_path / "out", NEW)
    assert tree(tmp_path) == [ours.name, f"{ours.name}/file", "out"]


@posix
def test_where_there_are_no_locks_nothing_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(start("one", tmp_path / "out"))
    before = tree(tmp_path)
    monkeypatch.setattr(workplace, "_lock", lambda _file: None)
    write_output(tmp_path / "out", NEW)
    assert tree(tmp_path) == sorted([*before, "out"])
    monkeypatch.undo()
    write_output(tmp_path / "out", NEW)
    assert tree(tmp_path) == ["out"]


def test_many_writers_of_one_name(tmp_path: Path) -> None:
    """Each clears what it takes for dead while the others begin."""
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                write_output(tmp_path / "out", bytes([number]) * 1000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and tree(tmp_path) == ["out"]
    contents = (tmp_path / "out").read_bytes()
    assert len(contents) == 1000 and len(set(contents)) == 1


def test_a_workplace_that_is_cleared_as_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, count = workplace._claim, 0

    def late(path: str) -> int | None:
        nonlocal count
        count += 1
        if count == 1:
            os.rmdir(path)  # another process thought it dead
        return claim(path)

    monkeypatch.setattr(workplace, "_claim", late)
    with Workplace(str(tmp_path), "out") as work:
        assert os.path.isdir(work.path) and count == 2
    assert tree(tmp_path) == []


# -- work that goes on later --


def test_work_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "out"
    first = start("resumable", path)
    assert first.first == "None"  # type: ignore[attr-defined]
    with pytest.raises(ConvertError, match="another process is writing"), resumable_file(find_place(path), 8, {}):
        pass
    while not list(tmp_path.glob(".out.partial/manifest.json")):
        assert first.poll() is None
    kill(first)
    assert not path.exists() and tree(tmp_path)[0] == ".out.partial"
    write_output(tmp_path / "out2", NEW)  # clears dead work, and this may go on
    second = start("resumable", path)
    assert second.first == "[4]"  # type: ignore[attr-defined]
    second.communicate("\n", timeout=60)
    assert path.read_bytes() == b"halfdone" and tree(tmp_path) == ["out", "out2"]


@pytest.mark.parametrize("damage", [None, "", "[]", "{", '{"belongs_to": {"seed": 2}, "done": [4]}'])
def test_other_work_begins_anew(tmp_path: Path, damage: str | None) -> None:
    with pytest.raises(KeyboardInterrupt), resumable_file(find_place(tmp_path / "out"), 8, {"seed": 1}) as (path, work):
        path.write_bytes(b"12345678")
        work.record([8])
        raise KeyboardInterrupt
    assert (tmp_path / ".out.partial" / "0").read_bytes() == b"12345678"
    if damage is not None:
        (tmp_path / ".out.partial" / "manifest.json").write_text(damage)
    seed = 1 if damage is not None else 3
    with resumable_file(find_place(tmp_path / "out"), 8, {"seed": seed}) as (path, work):
        assert work.done is None and path.read_bytes() == bytes(8)
    assert tree(tmp_path) == ["out"]


@posix
def test_ended_by_a_signal(tmp_path: Path) -> None:
    process = start("one", tmp_path / "out")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0 and tree(tmp_path) == []
