"""Runs long native calls so that Ctrl-C is noticed while they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1  # Windows does not wake a waiting main thread on Ctrl-C


class InterruptibleRunner:
    """Runs calls on a thread of its own while the main thread waits for KeyboardInterrupt.

    Python runs signal handlers only between bytecodes of the main thread: a native call there would hold Ctrl-C back
    until it returns. On other threads the call simply runs.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def run(self, call: Callable[[], T], cancel: Callable[[], None]) -> T:
        """call()'s result. On KeyboardInterrupt: cancel(), then wait for the call to return, then raise it."""
        if threading.current_thread() is not threading.main_thread():
            return call()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pyflash")
        future = self._executor.submit(call)
        try:
            return _wait(future)
        except BaseException:
            if not future.done():
                cancel()
            while not future.done():
                try:
                    future.exception(timeout=_POLL_SECONDS)
                except FutureTimeout:
                    pass
                except KeyboardInterrupt:  # an impatient second Ctrl-C: the memory is still in use
                    pass
            raise

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None


def _wait(future: Future[T]) -> T:
    while True:
        try:
            return future.result(timeout=_POLL_SECONDS)
        except FutureTimeout:
            if future.done():
                return future.result()
