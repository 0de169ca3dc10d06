"""What sessions hold, on disk: for the next start, and for conversations that begin as an earlier one did.

A unit is a session file, and beside it an index of its tokens. It is named by a digest of what it holds, and never changed.
What cannot be read is a miss, and is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.native.errors import Error, MemoryLimitError

_log = logging.getLogger("pyflash.serve")

LEAST_TOKENS = 1024  # of a unit: fewer are soon evaluated again
_BACK = 128  # tokens that any session can go back
_MAGIC = b"pyflash-unit-1\n"
_DIGEST = 16
_MOST_HEADER = 4096

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Unit:
    """A session on disk. checkpoint: a position within its tokens that it can go back to. n_bytes: on disk. used: when,
    seconds since 1970."""

    path: Path
    model: str
    name: str
    salt: str
    tokens: Ids
    checkpoint: int
    n_bytes: int
    used: float

    def usable(self, prompt: Ids) -> int:
        """How many of a prompt's tokens are evaluated there."""
        n = min(len(self.tokens), len(prompt) - 1)
        differing = np.flatnonzero(self.tokens[:n] != prompt[:n])
        common = int(differing[0]) if len(differing) else n
        if common >= len(self.tokens) - _BACK:
            return common
        return self.checkpoint if common >= self.checkpoint else 0


def model_key(model: Model, session: Session, cache_type: str) -> str:
    """Tells models and what they compute with apart. The session files themselves tell more exactly."""
    info = model.info
    told = (info.name, info.file_bytes, info.n_tensors, info.profile, info.precision, info.cpu_isa, model.placement.name,
            session.capacity > 0, cache_type)
    return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()


def _salted(salt: bytes) -> str:
    return hashlib.blake2b(b"salt" + salt, digest_size=8).hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def read_index(path: Path) -> Unit | None:
    """A unit by its index; None where that is damaged or its session file is missing."""
    try:
        data = path.read_bytes()
        file = path.with_suffix(".session")
        state = file.stat()
    except OSError:
        return None
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    end = body.find(b"\n", len(_MAGIC), len(_MAGIC) + _MOST_HEADER)
    if not body.startswith(_MAGIC) or end < 0 or _digest(body) != digest:
        return None
    try:
        header = json.loads(body[len(_MAGIC) : end])
        tokens = np.frombuffer(body[end + 1 :], dtype="<i4").astype(np.int32)
        return Unit(file, str(header["model"]), str(header["name"]), str(header["salt"]), tokens,
                    min(int(header["checkpoint"]), len(tokens)), state.st_size + len(data), state.st_mtime)
    except (ValueError, KeyError, TypeError):
        return None


def units(folder: Path) -> Iterator[Unit]:
    """All units of a folder."""
    for path in sorted(folder.glob("*.index")):
        if (unit := read_index(path)) is not None:
            yield unit


def clear(folder: Path) -> int:
    """Deletes all units and turns; returns the bytes that they had."""
    freed = 0
    for path in [each for pattern in ("*.index", "*.session", "*.turns", "*.part") for each in folder.glob(pattern)]:
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


class DiskCache:
    """The units of one model in a folder. For the engine's thread."""

    def __init__(self, folder: Path, limit: int) -> None:
        """limit: bytes that all units of the folder may have together."""
        self.folder = folder
        self._limit = limit
        self._model = ""
        self._name = ""
        self._units: dict[str, Unit] = {}
        self._is_usable = True

    def open(self, model: Model, session: Session, cache_type: str) -> None:
        """Finds what there is of a model."""
        self._model, self._name = model_key(model, session, cache_type), model.info.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            self._give_up(error)
            return
        self._units = {unit.path.stem: unit for unit in units(self.folder) if unit.model == self._model}

    def _give_up(self, error: Exception) -> None:
        _log.warning("conversations are not kept on disk: %s", error)
        self._is_usable = False

    def find(self, prompt: Sequence[int], salt: bytes, better_than: int) -> tuple[Unit, int] | None:
        """The unit that has most of a prompt, and how many tokens of it; None where none has more than better_than."""
        ids, salted = np.asarray(prompt, dtype=np.int32), _salted(salt)
        found = [(unit.usable(ids), unit) for unit in self._units.values() if unit.salt == salted]
        most, unit = max(found, key=lambda each: each[0], default=(0, None))
        return (unit, most) if unit is not None and most > better_than else None

    def load(self, unit: Unit, session: Session) -> bool:
        """Replaces what a session holds by a unit. False, with the session empty, where that cannot be read."""
        try:
            session.load(unit.path)
            with contextlib.suppress(OSError):
                os.utime(unit.path)
        except MemoryLimitError:
            return False
        except Error as error:
            _log.info("%s is dropped: %s", unit.path.name, error)
            self._delete(unit)
            session.rollback(session.position)
            return False
        return True

    def _delete(self, unit: Unit) -> None:
        self._units.pop(unit.path.stem, None)
        for path in (unit.path.with_suffix(".index"), unit.path):
            with contextlib.suppress(OSError):
                path.unlink()

    def save(self, session: Session, salt: bytes) -> None:
        """Keeps what a session holds, where that is worth it and not there yet."""
        tokens = session.tokens
        if not self._is_usable or len(tokens) < LEAST_TOKENS:
            return
        salted, data = _salted(salt), tokens.astype("<i4").tobytes()
        stem = hashlib.blake2b(f"{self._model} {salted} ".encode() + data, digest_size=16).hexdigest()
        path = self.folder / f"{stem}.session"
        if stem in self._units and path.exists():
            with contextlib.suppress(OSError):
                os.utime(path)
            return
        checkpoint = session.position - session.since_checkpoint
        header = {"model": self._model, "name": self._name, "salt": salted, "checkpoint": checkpoint}
        body = _MAGIC + json.dumps(header).encode() + b"\n" + data
        try:
            session.save(path)
            write_private(path.with_suffix(".index"), body + _digest(body))
        except (Error, OSError) as error:
            self._give_up(error)
            return
        self._replaced(tokens, salted)
        self._units[stem] = Unit(path, self._model, self._name, salted, tokens, checkpoint, path.stat().st_size + len(body),
                                 time.time())
        self._shrink(stem)

    def _replaced(self, tokens: Ids, salt: str) -> None:
        """Deletes the unit that this one goes on from: the same conversation a while ago."""
        for unit in list(self._units.values()):
            n = len(unit.tokens)
            if unit.salt == salt and n > unit.checkpoint and n < len(tokens) and bool((tokens[:n] == unit.tokens).all()):
                self._delete(unit)

    def _shrink(self, newest: str) -> None:
        """Deletes what was used longest ago, of any model, until the folder has room."""
        every = sorted(units(self.folder), key=lambda unit: unit.used)
        total = sum(unit.n_bytes for unit in every)
        for unit in every:
            if total <= self._limit:
                return
            if unit.path.stem != newest or unit.n_bytes > self._limit:
                self._delete(unit)
                total -= unit.n_bytes

    # -- the turns of these conversations --

    def read_turns(self) -> bytes:
        with contextlib.suppress(OSError):
            data = (self.folder / f"{self._model}.turns").read_bytes()
            if _digest(data[:-_DIGEST]) == data[-_DIGEST:]:
                return data[:-_DIGEST]
        return b""

    def write_turns(self, data: bytes) -> None:
        if self._is_usable:
            try:
                write_private(self.folder / f"{self._model}.turns", data + _digest(data))
            except OSError as error:
                self._give_up(error)


def write_private(path: Path, data: bytes) -> None:
    """A file of this user's alone, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
