"""The thread that writes the prefix cache's files, so that nobody waits for a disk."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pyflash.serve import disk_files, disk_folder

_log = logging.getLogger("pyflash.serve")

MOST_WAITING = 256 << 20  # bytes: where the disk is slower, what comes then is not kept
_PAUSE = 300.0  # seconds in which nothing is tried after a failure
_SHRINK_EVERY = 64  # th part of the limit: after so much has been written the folder is looked at


class Writer:
    """Carries out work in its order, on a thread that starts with the first of it and ends with close()."""

    def __init__(self, folder: Path, limit: int) -> None:
        """limit: bytes that the folder's files may have together."""
        self._folder, self._limit = folder, limit
        self._orders: queue.Queue[tuple[Callable[[], object], int] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._n_waiting = 0  # bytes
        self._n_new = 0  # bytes written since the folder was looked at
        self._paused_until = 0.0
        self.n_written = 0  # bytes in all

    def submit(self, work: Callable[[], object], n_bytes: int = 0) -> bool:
        """Has work done. n_bytes: what it holds in memory until then. False, and it is not done, where too much waits."""
        with self._lock:
            if n_bytes and (self._n_waiting + n_bytes > MOST_WAITING and self._n_waiting
                            or time.monotonic() < self._paused_until):  # fmt: skip
                return False
            self._n_waiting += n_bytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pyflash disk cache", daemon=True)
                self._thread.start()
            self._orders.put((work, n_bytes))
        return True

    def wait(self) -> None:
        """Waits until all is done that has been submitted."""
        if self._thread is not None:
            self._orders.join()

    def when_done(self, act: Callable[[], None], most_seconds: float) -> None:
        """Calls act once all is done that has been submitted, or after most_seconds, if that is sooner; on any thread."""
        if not self._orders.unfinished_tasks:
            act()
            return
        lock = threading.Lock()  # whoever takes it first acts

        def once() -> None:
            if lock.acquire(blocking=False):
                act()

        timer = threading.Timer(most_seconds, once)
        timer.daemon = True
        timer.start()

        def done() -> None:
            timer.cancel()
            once()

        self.submit(done)

    def close(self) -> None:
        """Waits as wait(), and ends the thread."""
        thread = self._thread
        if thread is not None:
            self._orders.put(None)
            thread.join()
            self._thread = None

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            work, n_bytes = order
            try:
                work()
            except OSError as error:
                if time.monotonic() >= self._paused_until:
                    _log.warning("conversations are not kept on disk for now: %s", error)
                self._paused_until = time.monotonic() + _PAUSE
            except Exception:
                _log.exception("unforeseen, in the disk cache")
            finally:
                with self._lock:
                    self._n_waiting -= n_bytes
                del work, order
                self._orders.task_done()
        self._orders.task_done()

    # -- what work is made of: on the thread --

    def write(self, path: Path, pieces: Iterable[disk_files.Bytes], make_place: Callable[[], None]) -> None:
        """A file of the cache. make_place: makes its folder, which may have been cleared."""
        try:
            n_bytes = disk_files.write(path, pieces)
        except FileNotFoundError:
            make_place()
            n_bytes = disk_files.write(path, pieces)
        self.n_written += n_bytes
        self._n_new += n_bytes
        if self._n_new > self._limit // _SHRINK_EVERY:
            self.shrink()

    def shrink(self) -> None:
        """Lets the folder have what it may."""
        if self._n_new:
            self._n_new = 0
            disk_folder.shrink(self._folder, self._limit)

    def append(self, path: Path, data: bytes, make_place: Callable[[], None]) -> None:
        """Adds to a file of this user's alone."""
        if not path.parent.is_dir():
            make_place()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600), "ab") as file:
            file.write(data)
        self.n_written += len(data)

    def replace(self, path: Path, data: bytes) -> None:
        """A file's content anew, where it has more than twice of it."""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > 2 * len(data):
                disk_files.write_private(path, [data])
