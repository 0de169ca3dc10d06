"""Text while it is generated: an iterator for threads and for asyncio, which any thread may cancel."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from pyflash.native.errors import BusyError, CancelledError, MemoryLimitError

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Cancellation:
    """A request, from any thread, to end one piece of work; it never reaches another one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may ask while its thread does
        self._interrupt: Callable[[], None] | None = None
        self.requested = False

    def request(self) -> None:
        """Ends the work that runs, and lets none begin any more."""
        with self._lock:
            self.requested = True
            if self._interrupt is not None:
                self._interrupt()

    @contextmanager
    def during(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """A part of the work, which interrupt() ends early. CancelledError when that was asked for before."""
        with self._lock:
            self.check()
            self._interrupt = interrupt
        try:
            yield
        finally:
            with self._lock:
                self._interrupt = None

    def check(self) -> None:
        if self.requested:
            raise CancelledError("cancelled")


class Stream(Iterator[T], AsyncIterator[T], Generic[T]):
    """Pieces that are generated as they are asked for, by `for` or by `async for`.

    Asked by `async for`, each step runs on a thread of its own, where progress functions and taps are called too, and
    the event loop goes on. Cancelling the task that waits cancels the step, waits until it is over, and ends this.
    """

    def __init__(self) -> None:
        self._cancellation = Cancellation()
        self._step_lock = threading.Lock()  # held while a step runs
        self._stepping: int | None = None  # the thread that runs it
        self._over = False
        self._executor: ThreadPoolExecutor | None = None

    @abstractmethod
    def _step(self) -> T:
        """The next piece. StopIteration when there is none."""

    @abstractmethod
    def _end(self) -> None:
        """Lets go of what makes pieces. May be called again."""

    # -- for threads --

    def __next__(self) -> T:
        if self._step_lock.locked():
            raise BusyError("this is being asked for its next piece already")
        with self._step_lock:
            if self._over:
                raise StopIteration
            self._stepping = threading.get_ident()
            try:
                self._cancellation.check()
                return self._step()
            except StopIteration:
                self._over = True
                raise
            except CancelledError:
                self._over = True
                self._end()
                raise
            finally:
                self._stepping = None

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def cancel(self) -> None:
        """From any thread: ends this, and nothing else. The step that runs, or else the next, raises CancelledError.

        What has been generated stays. After the end it does nothing.
        """
        self._cancellation.request()

    def close(self) -> None:
        """Ends this here; a step that runs on another thread is cancelled first."""
        if self._step_lock.locked():
            self.cancel()
            if self._stepping == threading.get_ident():
                return  # called from within the step, by a progress function or a tap: that ends now
        with self._step_lock:
            self._over = True
            self._end()
        self._dismiss()

    def _dismiss(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    # -- for asyncio --

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        step = self._on_thread(self._next)
        try:
            pieces = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.cancel()
            await _settled(step)
            self.close()
            raise
        except GeneratorExit:  # the task goes without having ended
            self.cancel()
            raise
        except BaseException:
            self._dismiss()
            raise
        if not pieces:
            self._dismiss()
            raise StopAsyncIteration
        return pieces[0]

    def _next(self) -> list[T]:
        """The next piece, if there is one; StopIteration cannot pass through a future."""
        try:
            return [next(self)]
        except StopIteration:
            return []

    def _on_thread(self, call: Callable[[], list[T]]) -> asyncio.Future[list[T]]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "pyflash")
        context = contextvars.copy_context()
        try:
            return asyncio.get_running_loop().run_in_executor(self._executor, context.run, call)
        except RuntimeError as error:  # "can't start new thread"
            raise MemoryLimitError(f"cannot generate beside the event loop: {error}") from error

    async def aclose(self) -> None:
        """close(), without holding up the event loop while a step that another task waits for is cancelled."""
        if not self._step_lock.locked():
            self.close()
            return
        closing = asyncio.ensure_future(asyncio.to_thread(self.close))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await _settled(closing)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _settled(future: asyncio.Future[T]) -> None:
    """Waits for the end of what must not run on, however often the waiting task is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({future})
    if not future.cancelled():
        future.exception()  # else asyncio complains that nobody has looked at it
