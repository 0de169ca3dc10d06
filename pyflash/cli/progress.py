"""A progress bar with bytes/s and time left, drawn only on a terminal."""

from __future__ import annotations

import contextlib
import time
from typing import TextIO

from pyflash.cli.streams import on_terminal
from pyflash.machine.units import format_bytes, format_seconds
from pyflash.native.text import visible

_REDRAW_SECONDS = 0.1
_WIDTH = 24


class Progress:
    """`with Progress("converting", sys.stderr) as p: p.update(done_bytes, total_bytes)`"""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label = label
        self._stream = stream
        self._active = on_terminal(stream)
        self._started = self._drawn = 0.0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._erase()

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = 0.0

    def say(self, line: str) -> None:
        """A line above the bar, written on any stream. That nobody can read it ends nothing."""
        self._erase()
        with contextlib.suppress(OSError):
            self._stream.write(f"{visible(line)}\n")
            self._stream.flush()

    def update(self, done: int, total: int) -> None:
        """Called as often as the worker likes; both in bytes."""
        now = time.monotonic()
        if not self._active or now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        self._stream.write("\r" + self.line(done, total, now - self._started) + "\x1b[K")
        self._stream.flush()

    def line(self, done: int, total: int, elapsed: float) -> str:
        share = done / total if total else 1.0
        bar = "#" * round(share * _WIDTH)
        rate = done / elapsed if elapsed > 0 else 0.0
        left = format_seconds((total - done) / rate) if rate > 0 else "--:--"
        return (
            f"{self._label} [{bar:.<{_WIDTH}}] {share:4.0%}  {format_bytes(done)} of {format_bytes(total)}, "
            f"{format_bytes(rate)}/s, {left} left"
        )
