"""How commands end when the system or Ctrl-C tells them to. Imports nothing slow: Ctrl-C may come in that, too."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143  # by SIGTERM


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the program as if it had decided so: everything open is closed."""
    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_on_interrupt() -> None:
    """From now on Ctrl-C ends the program at once and without a word: nothing is open yet, or nothing any more.

    KeyboardInterrupt would be shown with the line of whichever module is just being imported, or be lost there.
    """
    _replace_handler(signal.default_int_handler, _end)


@contextlib.contextmanager
def raising_on_interrupt() -> Iterator[None]:
    """Ctrl-C is KeyboardInterrupt meanwhile, and ends the program at once again after that, if it did before."""
    ended = signal.getsignal(signal.SIGINT) is _end
    try:
        _replace_handler(_end, signal.default_int_handler)
        yield
    finally:
        if ended:
            end_on_interrupt()


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)


def _replace_handler(old: object, new: Callable[[int, FrameType | None], object]) -> None:
    if signal.getsignal(signal.SIGINT) is old:  # a shell has it ignored in the background
        with contextlib.suppress(ValueError):  # not the main thread, which alone hears of signals
            signal.signal(signal.SIGINT, new)
