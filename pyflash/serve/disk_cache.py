"""The prefix cache on disk: rows that are appended and shared, exact tails, and the turns of conversations; for the next
start, for conversations that another one has taken the place of, and for those that begin as an earlier one did.

Copying out of a session is quick and happens on the engine's thread; hashing and writing are a writer's own. What cannot
be written is not kept, what cannot be read is a miss. Several servers may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.native.errors import Error
from pyflash.serve import disk_files, disk_folder
from pyflash.serve.disk_files import CHUNK, Damaged, Ids, Kind, Tail
from pyflash.serve.disk_writer import Writer

_log = logging.getLogger("pyflash.serve")

LEAST_TOKENS = 1024  # of a position that is kept: fewer are soon evaluated again
_MOST_TURNS = 8  # tails of a conversation's latest turns
_RESCAN = 2.0  # seconds after which names are read again, where another server may have written


@dataclass(frozen=True)
class Found:
    """A tail that a prompt may go on from. n_usable: how many of its tokens. names: of the chunks before it."""

    tail: Tail
    n_usable: int
    names: tuple[str, ...]


@dataclass
class _Line:
    """The digests of what a session held when it was looked at last."""

    start: str
    ids: Ids
    names: list[str]


def model_key(model: Model, session: Session) -> str:
    """Tells apart what computes other bits: model, precision, type of cache, kernels and their arithmetic, layers and what
    computes them, rings that not every session has."""
    placed = model.placement
    told = (session.parts, placed.name, placed.n_layer, placed.n_expert_layer, placed.head)
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


class DiskCache:
    """The prefix cache of one model in a folder. For the engine's thread."""

    def __init__(self, folder: Path, limit: int | None = None, least: int = LEAST_TOKENS) -> None:
        """limit: bytes that all files of the folder may have together; None: see usual_limit(). least: tokens of what is
        kept."""
        self.folder = folder
        self.limit = disk_folder.usual_limit(folder) if limit is None else limit
        self._least = least
        self._key = self._name = ""
        self._place = folder
        self._lines: WeakKeyDictionary[Session, _Line] = WeakKeyDictionary()
        self._rows: set[str] = set()  # names
        self._tails: dict[str, dict[str, Tail]] = {}  # parent: name: tail
        self._pending: set[str] = set()  # names that are to be written
        self._scanned = 0.0
        self._seen = -1  # the folder's time of change then
        self._writer = Writer(folder, self.limit)

    def open(self, model: Model, session: Session) -> None:
        """Finds what there is of a model. Before the others, and again when it has been opened anew."""
        self._key, self._name = model_key(model, session), model.info.name
        self._place = self.folder / self._key
        self._lines.clear()
        self._writer.submit(self._make_place)
        self.flush()
        self._scan()

    def close(self) -> None:
        """Writes what waits. It may be opened again."""
        self._writer.submit(self._writer.shrink)
        self._writer.close()

    def flush(self) -> None:
        """Waits until all is written that waits."""
        self._writer.wait()

    def when_written(self, act: Callable[[], None], most_seconds: float) -> None:
        """Calls act when flush() would be over, or after most_seconds; on any thread."""
        self._writer.when_done(act, most_seconds)

    def _make_place(self) -> None:
        disk_folder.make_model_folder(self.folder, self._key, self._name)

    # -- what there is --

    def _scan(self) -> None:
        self._scanned, self._seen = time.monotonic(), self._changed()
        self._rows, self._tails = set(), {}
        for name in {*self._pending, *disk_folder.names(self._place)}:
            what = disk_files.read_name(name)
            if isinstance(what, Tail):
                self._note(what)
            elif what is not None:
                self._rows.add(name)

    def _changed(self) -> int:
        try:
            return self._place.stat().st_mtime_ns
        except OSError:
            return -1

    def _note(self, tail: Tail) -> None:
        self._tails.setdefault(tail.parent, {})[tail.name] = tail

    def _forget(self, tail: Tail) -> None:
        self._tails.get(tail.parent, {}).pop(tail.name, None)

    def _look_again(self) -> None:
        """Other servers write and delete, too."""
        if time.monotonic() - self._scanned > _RESCAN and self._changed() != self._seen:
            self._scan()

    def _line(self, session: Session, salt: bytes) -> _Line:
        """The digests of what a session holds."""
        ids, start = session.tokens, disk_files.root(salt)
        known = self._lines.get(session)
        same = 0
        if known is not None and known.start == start:
            n = min(len(known.ids), len(ids))
            differing = np.flatnonzero(known.ids[:n] != ids[:n])
            same = (int(differing[0]) if len(differing) else n) // CHUNK
        line = _Line(start, ids, disk_files.chain(start, ids, known.names[:same] if known is not None else ()))
        self._lines[session] = line
        return line

    def _along(self, start: str, names: Sequence[str], ids: Ids, most: int) -> Iterator[tuple[int, Tail]]:
        """Tails that tokens go through, the latest ones first, and how many of the tokens they have."""
        for k in range(len(names), -1, -1):
            found = self._tails.get(names[k - 1] if k else start)
            if not found:
                continue
            usable = [(tail.usable(ids, most), tail) for tail in list(found.values())]
            yield from sorted(((n, tail) for n, tail in usable if n), key=lambda each: (-each[0], each[1].name))

    def find(self, prompt: Sequence[int], salt: bytes, better_than: int) -> Found | None:
        """The tail that has most of a prompt, short of its last token; None where none has more than better_than."""
        self._look_again()
        ids, start = np.asarray(prompt, dtype=np.int32), disk_files.root(salt)
        names = disk_files.chain(start, ids[:-1])
        best: Found | None = None
        for n, tail in self._along(start, names, ids, len(ids) - 1):
            if best is not None and tail.end < best.n_usable - CHUNK:
                break
            before = names[: tail.begin // CHUNK]
            is_whole = all(disk_files.rows_name(name, (i + 1) * CHUNK) in self._rows for i, name in enumerate(before))
            if is_whole and n > (best.n_usable if best else better_than):
                best = Found(tail, n, tuple(before))
        return best

    # -- into a session --

    def restore(self, session: Session, prompt: Sequence[int], salt: bytes, better_than: int) -> Iterator[None]:
        """Brings a session that holds a beginning of a prompt, perhaps none of it, as far on as something kept has it; a
        piece at a time. Until the last one the session stays where it is, and where nothing can be read it stays there."""
        ids = np.asarray(prompt, dtype=np.int32)
        while (found := self.find(prompt, salt, better_than)) is not None:
            try:
                yield from self._restore(session, ids, found)
                return
            except (OSError, Damaged) as error:
                _log.info("a position of %d tokens is dropped: %s", found.tail.end, error)
                self._delete(found.tail)
            except (Error, MemoryError) as error:  # it does not fit this session
                _log.info("a position of %d tokens is passed over: %s", found.tail.end, error)
                self._forget(found.tail)

    def _awaited(self, path: Path) -> Path:
        """A file that may still wait to be written."""
        if path.name in self._pending:
            self.flush()
        return path

    def _restore(self, session: Session, ids: Ids, found: Found) -> Iterator[None]:
        tail = found.tail
        for i in range(session.position // CHUNK, len(found.names)):
            end = (i + 1) * CHUNK
            path = self._place / disk_files.rows_name(found.names[i], end)
            try:
                session.import_rows(end - CHUNK, end, disk_files.read(self._awaited(path)))
            except (OSError, Damaged):
                self._drop_rows(path)
                raise
            yield
        content = disk_files.read_tail(self._awaited(self._place / tail.name))
        whole = np.concatenate([ids[: tail.begin], content.tokens])
        if len(whole) != tail.end or (whole[: tail.floor] != ids[: tail.floor]).any():
            raise Damaged(tail.name)
        if session.position <= found.n_usable:  # else it has got there by itself
            session.import_rows(tail.begin, tail.end, content.rows)
            session.import_tail(whole, content.tail)
        paths = [self._place / disk_files.rows_name(name, (i + 1) * CHUNK) for i, name in enumerate(found.names)]
        self._writer.submit(lambda: disk_folder.touch([*paths, self._place / tail.name]))

    def _drop_rows(self, path: Path) -> None:
        self._rows.discard(path.name)
        self._writer.submit(lambda: path.unlink(missing_ok=True))

    def _delete(self, tail: Tail) -> None:
        self._forget(tail)
        path = self._place / tail.name
        self._writer.submit(lambda: path.unlink(missing_ok=True))

    # -- out of one --

    def append(self, session: Session, salt: bytes) -> None:
        """Keeps the rows of a session's whole chunks that are not there yet."""
        if session.position < self._least or session.origin.n_foreign:
            return
        try:
            self._append(session, self._line(session, salt), session.position)
        except (Error, MemoryError) as error:
            _log.info("rows of %d tokens are not kept: %s", session.position, error)

    def _append(self, session: Session, line: _Line, end: int) -> list[Path]:
        """Those of the tokens before end; returns the files of all of them."""
        paths = []
        for i, digest in enumerate(line.names[: end // CHUNK]):
            path = self._place / disk_files.rows_name(digest, (i + 1) * CHUNK)
            paths.append(path)
            if path.name not in self._rows:
                rows = session.export_rows(i * CHUNK, (i + 1) * CHUNK)
                if self._submit(path, self._writing(path, [rows]), len(rows)):
                    self._rows.add(path.name)
        return paths

    def _submit(self, path: Path, work: Callable[[], None], n_bytes: int) -> bool:
        def write() -> None:
            try:
                work()
            finally:
                self._pending.discard(path.name)

        self._pending.add(path.name)
        if self._writer.submit(write, n_bytes):
            return True
        self._pending.discard(path.name)
        return False

    def save(self, session: Session, salt: bytes, position: int | None = None, kind: Kind = "turn") -> None:
        """Keeps a session as it is at a position: this one (None), or a checkpoint's. kind "base": where other
        conversations begin, too."""
        at = session.position if position is None else position
        if at < self._least or session.origin.n_foreign:
            return
        try:
            line = self._line(session, salt)
            paths = self._append(session, line, at)
            self._save_tail(session, line, paths, at, kind)
        except (Error, MemoryError) as error:
            _log.info("a position of %d tokens is not kept: %s", at, error)

    def _save_tail(self, session: Session, line: _Line, paths: list[Path], at: int, kind: Kind) -> None:
        ids, state = line.ids[:at], session.export_tail(at)
        floor = int.from_bytes(state[8:16], "little")
        tail = Tail.of(line.start, line.names, ids, floor, kind)
        paths = paths[: tail.begin // CHUNK]
        along = [each for _, each in self._along(line.start, line.names[: tail.begin // CHUNK], ids, at)]
        if tail in along:
            self._writer.submit(lambda: disk_folder.touch([*paths, self._place / tail.name]))
            return
        content = disk_files.TailContent(ids[tail.begin :], session.export_rows(tail.begin, at), state)
        pieces = content.pieces()
        n_bytes = sum(map(len, pieces))
        a_chunk = len(session.export_rows(0, CHUNK)) if paths else 0
        if len(paths) * a_chunk + n_bytes > self.limit * 3 // 4:
            _log.info("a position of %d tokens is not kept: it would fill the cache", at)
            return
        if self._submit(self._place / tail.name, self._writing_tail(tail, pieces, paths), n_bytes):
            self._note(tail)
            for old in [each for each in along if each.kind == "turn" and each.end <= at][_MOST_TURNS - 1 :]:
                self._delete(old)

    def _writing(self, path: Path, pieces: list[Any]) -> Callable[[], None]:
        def work() -> None:
            try:
                if disk_folder.touch([path]):
                    self._writer.write(path, pieces, self._make_place)
            except OSError:
                self._rows.discard(path.name)
                raise

        return work

    def _writing_tail(self, tail: Tail, pieces: list[Any], paths: list[Path]) -> Callable[[], None]:
        def work() -> None:
            missing = disk_folder.touch(paths)  # gone meanwhile: the next turn writes them again
            self._rows.difference_update(path.name for path in missing)
            try:
                if missing:
                    self._forget(tail)
                else:
                    self._writer.write(self._place / tail.name, pieces, self._make_place)
                    disk_folder.touch([*paths, self._place / tail.name])
            except OSError:
                self._forget(tail)
                raise

        return work

    # -- the turns of these conversations --

    def read_turns(self) -> bytes:
        """The lines of all turns that were kept."""
        try:
            data = disk_folder.turns_log(self._place).read_bytes()
        except OSError:
            return b""
        lines = disk_files.unsealed(data)
        return b"".join(line + b"\n" for line in lines)

    def add_turn(self, line: bytes) -> None:
        """Keeps one more line."""
        path, data = disk_folder.turns_log(self._place), disk_files.sealed(line)
        self._writer.submit(lambda: self._writer.append(path, data, self._make_place))

    def rewrite_turns(self, lines: bytes) -> None:
        """Keeps these lines and no others, where the log has grown to more than twice of them."""
        path = disk_folder.turns_log(self._place)
        data = b"".join(map(disk_files.sealed, lines.splitlines()))
        self._writer.submit(lambda: self._writer.replace(path, data))
