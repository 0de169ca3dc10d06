"""Files that are written under a name that somebody chose: what stands there is looked at before anything is replaced.

- A regular file appears whole or not at all. It is written beside, flushed to the disk and then renamed. It keeps the
  permissions, and the owner where the system lets us, of the file that it replaces; other hard links to that file keep
  the old contents. A read-only file is not replaced, not even for root.
- Links are followed, dangling ones too: the file goes where they lead, and so does the work.
- Pipes, character devices and this program's own streams (/dev/stdout, /dev/fd/3) are written through where the caller
  writes from front to back, and refused elsewhere. Folders, sockets and disks are refused.

On Windows NUL and CON are such devices, a file that a program has open is not replaced, and permissions are the
folder's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf_export.errors import ConvertError, reason
from gguf_export.units import gigabytes
from gguf_export.workplace import ResumableWorkplace, Workplace, clear_dead, flush, flush_folder, flushed

StrPath = str | os.PathLike[str]

_MOST_LINKS = 40
_STREAMS_OF_A_PROCESS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Place:
    """Where an output goes. given: the name as asked for; folder and name: where that leads, with no links in it.

    is_stream: it is written through, by the number of one of this program's own streams or else (None) by its name.
    replaces_link: a link that stands there is itself replaced.
    """

    given: str
    folder: str
    name: str
    is_stream: bool = False
    stream: int | None = None
    replaces_link: bool = False

    @property
    def real(self) -> str:
        return os.path.join(self.folder, self.name)


def check_name(path: StrPath) -> str:
    """A path that the system can be asked about, without a slash at its end. ConvertError for any other."""
    text = os.fsdecode(path)
    if "\0" in text:
        raise ConvertError(f"a path cannot hold a zero byte: {text!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConvertError(f"no file can have the name {text!r} here") from None
    if not text:
        raise ConvertError("a path cannot be empty: give a name")
    return os.fspath(Path(text))


def find_place(path: StrPath, *, streams: bool = False, inputs: Iterable[StrPath] = ()) -> Place:
    """Where an output of that name goes. ConvertError, a sentence, for what must not be written to.

    streams: the caller writes from front to back, so a pipe or device will do. inputs: what the output is made from.
    """
    given = check_name(path)
    try:
        folder, name, stream = _follow(given)
        found = os.fstat(stream) if stream is not None else os.stat(given)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise _cannot(given, error) from None
    if found is not None and (stream is not None or not stat.S_ISREG(found.st_mode)):
        _check_stream(given, found.st_mode, streams)
        if stream is None and not os.access(given, os.W_OK):
            raise ConvertError(f"cannot write {given}: {os.strerror(errno.EACCES)}: check its permissions")
        return Place(given, folder, name, is_stream=True, stream=stream)
    place = Place(given, folder, name)
    if any(os.path.normcase(os.path.realpath(each)) == os.path.normcase(place.real) for each in inputs):
        raise ConvertError(f"{given} is a file that this is made from; choose another name")
    if not os.path.isdir(folder):
        raise ConvertError(f"cannot write {given}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConvertError(f"cannot write {given}: the folder {folder} does not let you: choose another one")
    if found is not None:
        _check_replaceable(given, place.real, found)
    return place


def _cannot(given: str, error: OSError) -> ConvertError:
    return ConvertError(f"cannot write {given}: {reason(error)}")


def _follow(path: str) -> tuple[str, str, int | None]:
    """(folder, name, None) of what a path leads to, link by link; or with the number of an own stream that it names."""
    given = path
    for _ in range(_MOST_LINKS):
        head, name = os.path.split(path)
        if name in ("", ".", ".."):
            return (*os.path.split(os.path.realpath(path)), None)
        folder = os.path.realpath(head or ".")
        process = _STREAMS_OF_A_PROCESS.fullmatch(folder)
        if name.isdecimal() and (folder == "/dev/fd" or process):
            is_own = process is None or int(process[1]) == os.getpid()
            return folder, name, int(name) if is_own else None
        path = os.path.join(folder, name)
        try:
            link = os.readlink(path)
        except OSError:  # no link
            return folder, name, None
        path = os.path.join(folder, link)
    raise ConvertError(f"cannot write {given}: its links lead round in a circle; remove them or choose another name")


def _check_stream(given: str, mode: int, streams: bool) -> None:
    for is_kind, what in ((stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"), (stat.S_ISBLK, "a disk")):
        if is_kind(mode):
            raise ConvertError(f"{given} is {what}; give the name of a file")
    if not streams:
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device" if stat.S_ISCHR(mode) else "an open stream"
        raise ConvertError(f"{given} is {what}, where this cannot be written; give the name of a file")


def _check_replaceable(given: str, real: str, found: os.stat_result) -> None:
    if not found.st_mode & 0o222 or not os.access(real, os.W_OK):
        raise ConvertError(f"{given} is read-only; make it writable or choose another name")
    if _is_mounted(real):
        raise ConvertError(f"{given} is a file that is mounted there, and cannot be replaced; choose another name")


def _is_mounted(path: str) -> bool:
    """Whether a single file is mounted there, as containers get them."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            places = [line.split(b" ")[4] for line in file]
    except (OSError, IndexError):
        return False
    return os.fsencode(path) in [_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), place) for place in places]


def make_room(places: Sequence[Place], sizes: Sequence[int], name: str | None = None) -> None:
    """Removes what killed runs left of these files; then ConvertError where a disk that they go to has too little space
    free.

    name: of the set that they are, as for output_files().
    """
    needed: dict[str, int] = {}
    for place, size in zip(places, sizes, strict=True):
        if not place.is_stream:
            clear_dead(place.folder, name or place.name)
            needed[place.folder] = needed.get(place.folder, 0) + size
    check_space(needed)


def check_space(needed: Mapping[str, int]) -> None:
    """ConvertError where a disk has less space free than all the folders on it need. needed: bytes by folder."""
    sizes: dict[int, int] = {}
    folders: dict[int, str] = {}
    for folder, size in needed.items():
        device = os.stat(folder).st_dev
        sizes[device] = sizes.get(device, 0) + size
        folders.setdefault(device, folder)
    for device, size in sizes.items():
        free = shutil.disk_usage(folders[device]).free
        if free < size:
            raise ConvertError(f"{folders[device]} has {gigabytes(free)} free and the output needs {gigabytes(size)}: "
                               "free some space or choose another disk")


def put(work: str, place: Place, *, is_link: bool = False) -> None:
    """Gives a finished file its name, for good, with the permissions of the file that it replaces.

    is_link: the work is only another name, hard link or symlink, of a file that stays as it is. OSError.
    """
    with contextlib.nullcontext() if is_link else flushed(work), contextlib.suppress(FileNotFoundError):
        before = os.lstat(place.real)
        if not stat.S_ISREG(before.st_mode) and not (place.replaces_link and stat.S_ISLNK(before.st_mode)):
            raise ConvertError(f"{place.given} has become something else while it was written; choose another name")
        if stat.S_ISREG(before.st_mode) and not is_link:
            _keep_owner(work, before)
    os.replace(work, place.real)
    flush_folder(place.folder)


def _keep_owner(work: str, before: os.stat_result) -> None:
    """Owner and group where the system lets us, and the permissions; not another group's."""
    made = os.stat(work)
    if hasattr(os, "chown") and (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
        for owner in (before.st_uid, -1):
            with contextlib.suppress(OSError):
                os.chown(work, owner, before.st_gid)
                break
    others = 0o070 if os.stat(work).st_gid != before.st_gid else 0
    with contextlib.suppress(OSError):  # some file systems have none
        os.chmod(work, before.st_mode & 0o777 & ~others)


@contextlib.contextmanager
def output_file(
    path: StrPath | Place, *, streams: bool = False, private: bool = False, inputs: Iterable[StrPath] = ()
) -> Iterator[BinaryIO]:
    """A file to write, which has its name when the block ends without an error, and else is not there.

    streams and inputs as for find_place(). private: a new file is its owner's alone. ConvertError for what the system
    refuses, also within the block.
    """
    place = path if isinstance(path, Place) else find_place(path, streams=streams, inputs=inputs)
    try:
        if place.is_stream:
            with _open_stream(place) as file:
                yield file
            return
        with Workplace(place.folder, place.name) as work:
            made = work.file(0)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with open(os.open(made, flags, 0o600 if private else 0o666), "w+b") as file:
                yield file
            put(made, place)
    except OSError as error:
        raise _cannot(place.given, error) from error


def _open_stream(place: Place) -> BinaryIO:
    if place.stream is not None:
        return open(os.dup(place.stream), "wb")
    opened = os.open(place.given, os.O_WRONLY | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise ConvertError(f"{place.given} has become something else meanwhile; choose another name")
    return open(opened, "wb")


def write_output(
    path: StrPath | Place, data: bytes, *, streams: bool = True, private: bool = False, inputs: Iterable[StrPath] = ()
) -> None:
    """Writes a whole file, as output_file()."""
    with output_file(path, streams=streams, private=private, inputs=inputs) as file:
        file.write(data)


@contextlib.contextmanager
def output_files(places: Sequence[Place], sizes: Sequence[int], name: str) -> Iterator[list[Path]]:
    """Files of these sizes to write by their paths, in any order; they get their names one by one when the block ends.

    name: of the set, by which a later run finds what a killed one left. Each file appears whole or not at all; an error
    or Ctrl-C leaves none, except within the renames at the very end.
    """
    with contextlib.ExitStack() as stack:
        works: dict[str, Workplace] = {}
        paths = []
        for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
            try:
                if place.folder not in works:
                    works[place.folder] = stack.enter_context(Workplace(place.folder, name))
                paths.append(Path(works[place.folder].file(number)))
                with open(paths[-1], "xb") as file:
                    file.truncate(size)
            except OSError as error:
                raise _cannot(place.given, error) from None
        yield paths
        _put_all(paths, places)


@contextlib.contextmanager
def resumable_file(place: Place, size: int, belongs_to: dict[str, Any]) -> Iterator[tuple[Path, ResumableWorkplace]]:
    """A file of that size to write by its path, in any order, over several runs: see ResumableWorkplace.

    It has its name when the block ends without an error. Else it waits, with its manifest, for a run of the same work.
    """
    try:
        with ResumableWorkplace(place.folder, place.name, belongs_to) as work:
            path = Path(work.file(0))
            with open(path, "ab") as file:
                file.truncate(size)
            yield path, work
            put(str(path), place)
    except OSError as error:
        raise _cannot(place.given, error) from error


@contextlib.contextmanager
def resumable_files(
    places: Sequence[Place], sizes: Sequence[int], name: str, belongs_to: dict[str, Any]
) -> Iterator[tuple[list[Path], ResumableWorkplace]]:
    """As resumable_file(), for a set of files of one folder, called name; they get their names one by one at the end."""
    folder = places[0].folder
    for place in places:
        if place.folder != folder:
            raise ConvertError(f"{place.given} is a link to another folder, {place.folder}: remove it, or give a name there")
    try:
        with ResumableWorkplace(folder, name, belongs_to) as work:
            paths = [Path(work.file(number)) for number in range(len(places))]
            for path, size in zip(paths, sizes, strict=True):
                with open(path, "ab") as file:
                    file.truncate(size)
            yield paths, work
            _put_all(paths, places)
    except OSError as error:
        raise _cannot(places[0].given, error) from error


def _put_all(paths: Sequence[Path], places: Sequence[Place]) -> None:
    for path in paths:  # before the first has its name: flushing can take minutes
        flush(str(path))
    for path, place in zip(paths, places, strict=True):
        try:
            put(str(path), place)
        except OSError as error:
            raise _cannot(place.given, error) from None


def check_distinct(places: Sequence[Place]) -> None:
    """ConvertError where two outputs lead to one file."""
    seen: dict[str, str] = {}
    for place in places:
        other = seen.setdefault(os.path.normcase(place.real), place.given)
        if other != place.given:
            raise ConvertError(f"{other} and {place.given} lead to the same file; choose another name")


@contextlib.contextmanager
def output_folder(path: StrPath) -> Iterator[tuple[Path, list[str]]]:
    """A folder that is new or empty, for files that get their names in it when the block ends, in the order listed.

    Yields (folder to write in, list to fill with the files' names). An existing folder is kept, so that it can be the
    root of another disk. An error or Ctrl-C leaves it empty, or not there where it was not, except within the renames
    at the end.
    """
    given = check_name(path)
    folder = os.path.realpath(given)
    made = False
    try:
        try:
            os.mkdir(folder)
            made = True
        except FileExistsError:
            _check_empty(given, folder)
        except FileNotFoundError:
            raise ConvertError(f"cannot write {given}: there is no folder {os.path.dirname(folder)}") from None
        try:
            with Workplace(folder, os.path.basename(folder)) as work:
                names: list[str] = []
                yield Path(work.path), names
                _put_all([Path(work.path, name) for name in names],
                         [Place(os.path.join(given, name), folder, name) for name in names])
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise
        if made:
            flush_folder(os.path.dirname(folder))
    except OSError as error:
        raise _cannot(given, error) from error


def _check_empty(given: str, folder: str) -> None:
    clear_dead(folder, os.path.basename(folder))
    if not os.path.isdir(folder) or os.listdir(folder):
        raise ConvertError(f"{given} exists and is not an empty folder; give a new name")
