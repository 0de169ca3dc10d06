"""A stage's part of a session file, on its way between the stage's machine and the driver's."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pyflash.engine.session import Session
from pyflash.native.errors import FileError

PIECE: Final = 8 << 20  # bytes of a message


def save_here(session: Session) -> tuple[str, int]:
    """Saves a session to a temporary file, and gives its path and size."""
    folder = tempfile.mkdtemp(prefix="pyflash-stage-")
    path = os.path.join(folder, "session")
    try:
        session.save(path)
        return path, os.path.getsize(path)
    except BaseException:
        remove(path)
        raise


def read_piece(path: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error


def write_piece(path: str | None, data: bytes) -> str:
    """Appends to a file; None: to a new temporary one. Gives its path."""
    try:
        if path is None:
            path = os.path.join(tempfile.mkdtemp(prefix="pyflash-stage-"), "session")
        with open(path, "ab") as file:
            file.write(data)
        return path
    except OSError as error:
        raise FileError(f"cannot write a temporary file of the session: {error.strerror}") from error


def remove(path: str) -> None:
    """Removes a temporary file with its folder."""
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)
        Path(path).parent.rmdir()


# -- on the driver's machine --


def pieces(path: str) -> Iterator[bytes]:
    """What a file holds, piece by piece, at least one. FileError."""
    try:
        with open(path, "rb") as file:
            yield file.read(PIECE)
            while data := file.read(PIECE):
                yield data
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error


def write_whole(path: str, data: Iterable[bytes]) -> None:
    """Writes a file that appears under its name only when complete, as Session.save() does: a new one is its owner's alone,
    an old one keeps its permissions, and a symbolic link stays. FileError."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileError(f"{path} is no regular file: name one that is, or a new one")
    beside = None
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".pyflash-", delete=False) as file:
            beside = Path(file.name)
            for each in data:
                file.write(each)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
        beside = None
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
