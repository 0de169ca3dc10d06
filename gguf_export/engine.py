"""Runs independent read-compute-write jobs on a few threads with bounded memory.

Every job knows where its bytes come from and go to, so threads need no order between them: while one waits for the disk
another computes. Files are read with plain reads into reused buffers, not mapped, so memory does not follow file size.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_export.errors import ConvertError, reason
from gguf_export.safetensors_file import TensorRef

ProgressFn = Callable[[int, int], None]  # bytes done, bytes in all

MOST_OPEN_FILES = 8  # per thread
N_THREADS = max(2, min(4, os.cpu_count() or 2))  # more only contend for the output file
_TICK_SECONDS = 0.1


class Io:
    """One thread's open files and buffers. scattered: reads are small and far apart, so reading ahead is a waste.

    is_stopped: whether a job that takes long should return early.
    """

    def __init__(self, scattered: bool = False, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._scattered = scattered
        self.is_stopped = is_stopped
        self._files: OrderedDict[tuple[Path, str], FileIO] = OrderedDict()
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def __enter__(self) -> Io:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def _file(self, path: Path, mode: str) -> FileIO:
        key = (path, mode)
        file = self._files.pop(key, None)
        if file is None:
            if len(self._files) >= MOST_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            file = FileIO(path, mode)
            if self._scattered and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        self._files[key] = file
        return file

    def buffer(self, name: str, dtype: type[np.generic], count: int) -> NDArray[Any]:
        """`count` uninitialised elements that stay valid until the same name is asked for again."""
        nbytes = count * np.dtype(dtype).itemsize
        held = self._buffers.get(name)
        if held is None or held.nbytes < nbytes:
            self._buffers.pop(name, None)
            held = self._buffers[name] = np.empty(nbytes, dtype=np.uint8)
        return held[:nbytes].view(dtype)

    def read(self, ref: TensorRef, begin: int, nbytes: int, buffer: str) -> NDArray[np.uint8]:
        """Bytes [begin, begin + nbytes) of a tensor, in the named buffer."""
        assert ref.path is not None
        out: NDArray[np.uint8] = self.buffer(buffer, np.uint8, nbytes)
        view = out.data
        try:
            file = self._file(ref.path, "rb")
            file.seek(ref.offset + begin)
            while view:
                got = file.readinto(view)
                if not got:
                    raise ConvertError(f"{ref.path} became shorter while it was read (tensor {ref.name})")
                view = view[got:]
        except OSError as error:
            raise ConvertError(f"cannot read {ref.path}: {reason(error)} (tensor {ref.name})") from None
        return out

    def write(self, path: Path, offset: int, data: NDArray[Any]) -> None:
        view = data.data.cast("B")
        try:
            file = self._file(path, "r+b")
            file.seek(offset)
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise ConvertError(f"cannot write {path}: {reason(error)}") from None


class Job(Protocol):
    """A bounded piece of work."""

    def run(self, io: Io) -> int:
        """Does it and returns the bytes to count as done."""


class _Run:
    """State shared by the threads of one run_jobs() call."""

    def __init__(self, jobs: Iterable[Job], scattered: bool) -> None:
        self._jobs: Iterator[Job] = iter(jobs)
        self._scattered = scattered
        self.lock = threading.Condition()
        self.done = 0
        self.running = 0
        self.stopped = False
        self.error: BaseException | None = None

    def _next(self) -> Job | None:
        with self.lock:
            return None if self.stopped else next(self._jobs, None)

    def work(self) -> None:
        try:
            with Io(self._scattered, lambda: self.stopped) as io:
                while (job := self._next()) is not None:
                    count = job.run(io)
                    with self.lock:
                        self.done += count
        except BaseException as error:  # handed to the caller's thread
            with self.lock:
                self.error = self.error or error
                self.stopped = True
        finally:
            with self.lock:
                self.running -= 1
                self.lock.notify_all()


def run_jobs(
    jobs: Iterable[Job],
    total: int,
    progress: ProgressFn | None = None,
    threads: int = N_THREADS,
    scattered: bool = False,
) -> None:
    """Runs all jobs; the first error, or Ctrl-C in the calling thread, stops the others at their next job.

    scattered: as for Io. progress is called in the calling thread, about ten times a second. Returns or raises only
    when every thread ended.
    """
    run = _Run(jobs, scattered)
    run.running = threads
    workers = [threading.Thread(target=run.work, name=f"convert-{i}", daemon=True) for i in range(threads)]
    try:
        for worker in workers:
            try:
                worker.start()
            except RuntimeError:  # the system starts no more: the others do its work
                with run.lock:
                    run.running -= 1
        if all(worker.ident is None for worker in workers):
            raise ConvertError("the system starts no more threads: end other programs, or raise the limit of processes "
                               "(ulimit -u, pids.max) or of memory (ulimit -v)")
        while True:
            with run.lock:
                if run.running:
                    run.lock.wait(_TICK_SECONDS)
                done, is_running = run.done, run.running > 0
            if progress is not None:
                progress(done, total)
            if not is_running:
                break
    finally:
        with run.lock:
            run.stopped = True
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    if run.error is not None:
        raise run.error


def write_header(path: Path, header: bytes) -> None:
    """The start of a file that already has its size."""
    try:
        with open(path, "r+b") as file:
            file.write(header)
    except OSError as error:
        raise ConvertError(f"cannot write {path}: {reason(error)}") from None
