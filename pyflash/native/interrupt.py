"""Runs long native calls so that Ctrl-C is noticed while they run."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pyflash.native import forks
from pyflash.native.errors import MemoryLimitError

T = TypeVar("T")

NO_MORE_THREADS = ("the system starts no more threads: end other programs, or raise the limit of processes (ulimit -u, "
                   "pids.max) or of memory (ulimit -v)")  # fmt: skip
_POLL_SECONDS = 0.1  # Windows does not wake a waiting main thread on Ctrl-C


class _Task(Generic[T]):
    """A call that one thread hands to another; it runs at most once."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._claimed = threading.Lock()
        self._ended = threading.Lock()
        self._ended.acquire()
        self.finished = False
        self._result: list[T] = []
        self._error: BaseException | None = None

    def claim(self) -> bool:
        """Whether the caller is the first to ask: only then may it run the call, or leave it for ever."""
        return self._claimed.acquire(blocking=False)

    def run(self) -> None:
        if not self.claim():
            return
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error
        self.finished = True
        self._ended.release()

    def wait(self) -> None:
        while not self.finished:
            self._ended.acquire(timeout=_POLL_SECONDS)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]


class InterruptibleRunner:
    """Runs calls on a thread of its own while the main thread waits for KeyboardInterrupt.

    Python runs signal handlers only between bytecodes of the main thread: a native call there would hold Ctrl-C back
    until it returns. On other threads the call simply runs. KeyboardInterrupt may come at any bytecode of this class,
    and still no call runs on after run() or settle() has returned: it may be using memory that its caller frees then.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Task[object] | None] | None = None  # None ends the thread that reads it
        self._task: _Task[object] | None = None  # set from before a call is handed over until it is known to be over
        forks.watch(self)

    def after_fork(self) -> None:
        """Forgets the thread, which a child does not have, and what it was doing."""
        self._queue = None
        self._task = None

    def run(self, call: Callable[[], T], cancel: Callable[[], None]) -> T:
        """call()'s result. On KeyboardInterrupt: cancel(), then wait for the call to return, then raise it."""
        self.settle()
        if threading.current_thread() is not threading.main_thread():
            return call()
        task = _Task(call)
        self._task = task  # type: ignore[assignment]  # its result goes to nobody else
        try:
            self._start().put(self._task)
            task.wait()
        except BaseException:
            self.settle(cancel)
            raise
        self._task = None
        return task.result()

    def settle(self, cancel: Callable[[], None] | None = None) -> None:
        """Waits until no call runs any more; cancel() is there to hurry it."""
        while True:
            try:
                task = self._task
                if task is not None and not task.claim():
                    if cancel is not None and not task.finished:
                        hurry, cancel = cancel, None
                        hurry()
                    task.wait()
                self._task = None
                return
            except KeyboardInterrupt:  # an impatient second Ctrl-C
                pass

    def _start(self) -> queue.SimpleQueue[_Task[object] | None]:
        if self._queue is None:
            tasks: queue.SimpleQueue[_Task[object] | None] = queue.SimpleQueue()
            try:
                threading.Thread(target=_work, args=(tasks,), name="pyflash", daemon=True).start()
            except RuntimeError as error:
                raise MemoryLimitError(NO_MORE_THREADS) from error
            except BaseException:
                tasks.put(None)  # in case it has started all the same
                raise
            self._queue = tasks
        return self._queue

    def close(self) -> None:
        """Ends the thread, when the call that it may be running is over."""
        self.settle()
        tasks, self._queue = self._queue, None
        if tasks is not None:
            tasks.put(None)

    def __del__(self) -> None:
        if self._queue is not None:
            self._queue.put(None)


def _work(tasks: queue.SimpleQueue[_Task[object] | None]) -> None:
    process = os.getpid()
    while (task := tasks.get()) is not None:
        task.run()
        del task  # else what the call refers to would live until the next one
        if os.getpid() != process:  # a child that the call has forked, where nobody will hand over another
            return
