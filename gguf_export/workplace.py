"""Folders for work that is under way, beside the files that it becomes: .NAME.TOKEN.part, or .NAME.partial where a
later run may go on.

A workplace holds a lock while its writer lives, so that the next writer of the same name can tell what a killed one
left from what is still being written, also by another container. Where a file system has no locks nothing is cleared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

from gguf_export.errors import ConvertError

_W = TypeVar("_W", bound="Workplace")

_LOCK = "lock"
_MANIFEST = "manifest.json"
_ENDING = ".part"
_TOKEN_BYTES = 4
_AROUND = len(".") + len(".") + 2 * _TOKEN_BYTES + len(_ENDING)  # around the name; ".NAME.partial" is shorter

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> bool | None:
        """Whether the lock is ours now; None where this file system has no locks. It is, until the file is closed."""
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return False if error.errno in (errno.EACCES, errno.EDEADLK) else None
        return True
else:
    import fcntl

    def _lock(file: int) -> bool | None:
        """Whether the lock is ours now; None where this file system has no locks. It is, until the file is closed."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True


def _short(folder: str, name: str) -> str:
    """The name, or a shorter one where the workplace's would be too long for the file system."""
    most = 255
    if sys.platform != "win32":
        with contextlib.suppress(OSError, ValueError):
            limit = os.pathconf(folder, "PC_NAME_MAX")
            most = min(most, limit) if limit > 0 else most
    encoded = os.fsencode(name)
    room = most - _AROUND
    if len(encoded) <= room:
        return name
    mark = "~" + hashlib.blake2b(encoded, digest_size=6).hexdigest()
    return encoded[: room - len(mark)].decode("utf-8", "ignore") + mark  # not every system takes half characters


def _claim(path: str) -> int | None:
    """A workplace's lock file, open and locked. None: another process has it, or has removed the folder just now."""
    lock = os.path.join(path, _LOCK)
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        if _lock(file) is not False and os.path.samestat(os.fstat(file), os.stat(lock)):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _empty(path: str) -> None:
    """Removes everything but the lock, as far as the system lets us."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path)):
            if entry.name == _LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _remove(path: str, lock: int) -> None:
    """The lock goes last: a folder with files but without one would be nobody's."""
    _empty(path)
    if sys.platform == "win32":  # what is open cannot be removed there
        os.close(lock)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(path, _LOCK))
        os.rmdir(path)
    if sys.platform != "win32":
        os.close(lock)


def clear_dead(folder: str, name: str) -> None:
    """Removes the workplaces of this name whose writers have died without being able to."""
    pattern = re.compile(rf"\.{re.escape(_short(folder, name))}\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}{re.escape(_ENDING)}")
    with contextlib.suppress(OSError):
        for found in filter(pattern.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                _clear(os.path.join(folder, found))


def _clear(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or (sys.platform != "win32" and status.st_uid != os.geteuid()):
        return
    try:
        file = os.open(os.path.join(path, _LOCK), os.O_RDWR)
    except FileNotFoundError:
        os.rmdir(path)  # it ended before it had a lock, or is beginning: then it sees that and begins again
        return
    if _lock(file):
        _remove(path, file)
    else:
        os.close(file)


class Workplace:
    """A new folder beside a file called name, removed with all that is left in it at the end of the block.

    folder: the one that the file goes to, with no links in it. OSError where it cannot be made.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.folder = folder
        clear_dead(folder, name)
        while True:
            path = os.path.join(folder, f".{_short(folder, name)}.{secrets.token_hex(_TOKEN_BYTES)}{_ENDING}")
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                continue
            try:
                lock = _claim(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
                raise
            if lock is not None:
                break
        self.path = path
        self._lock = lock

    def file(self, number: int) -> str:
        """A path for the number-th file of the work."""
        return os.path.join(self.path, str(number))

    def __enter__(self: _W) -> _W:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.path, self._lock)


def left_work(folder: str, name: str) -> dict[str, Any] | None:
    """What an unfinished run of a ResumableWorkplace noted: {"belongs_to": ..., "done": ...}."""
    try:
        with open(os.path.join(_partial(folder, name), _MANIFEST), encoding="utf-8") as file:
            found = json.load(file)
        return {"belongs_to": found["belongs_to"], "done": found["done"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _partial(folder: str, name: str) -> str:
    return os.path.join(folder, f".{_short(folder, name)}.partial")


class ResumableWorkplace(Workplace):
    """A folder that is kept when the block ends by an error, or is killed, for a later run of the same work; where nothing
    has been noted by record() there is nothing to go on from, and an error removes it.

    belongs_to: what the work is made from and how, as JSON holds it. What lies there of other work is removed. done:
    what record() noted last, None at the beginning. ConvertError where another process is at it.
    """

    def __init__(self, folder: str, name: str, belongs_to: dict[str, Any]) -> None:
        self.folder = folder
        self.path = _partial(folder, name)
        os.makedirs(self.path, 0o700, exist_ok=True)
        lock = _claim(self.path)
        if lock is None:
            raise ConvertError(f"another process is writing {os.path.join(folder, name)}: wait for it or end it")
        self._lock = lock
        self._belongs_to = belongs_to
        self.done: Any = None
        found = left_work(folder, name)
        if found is not None and found["belongs_to"] == belongs_to:
            self.done = found["done"]
        else:
            _empty(self.path)

    def record(self, done: Any) -> None:
        """Notes how far the work is. What it speaks of must be on the disk: flush(path) before."""
        new = os.path.join(self.path, f"{_MANIFEST}.new")
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"belongs_to": self._belongs_to, "done": done}, file)
        flush(new)
        os.replace(new, os.path.join(self.path, _MANIFEST))
        flush_folder(self.path)
        self.done = done

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self.done is None:
            _remove(self.path, self._lock)
        else:
            os.close(self._lock)


@contextlib.contextmanager
def flushed(path: str) -> Iterator[None]:
    """Everything written to a file, also by other threads, and what the block changes of it, is on the disk after."""
    file = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)  # while its permissions let us
    try:
        yield
        _sync(file)
    finally:
        os.close(file)


def _sync(file: int) -> None:
    try:
        if sys.platform == "darwin":  # where fsync() leaves it in the disk's cache
            with contextlib.suppress(OSError):
                fcntl.fcntl(file, fcntl.F_FULLFSYNC)
                return
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such thing
            raise


def flush(path: str) -> None:
    """Everything written to a file is on the disk."""
    with flushed(path):
        pass


def flush_folder(path: str) -> None:
    """Makes new names in a folder last through a power cut, where the system lets us."""
    if sys.platform == "win32":  # which keeps a journal of them
        return
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
