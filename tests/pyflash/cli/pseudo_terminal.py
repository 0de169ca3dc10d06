"""A pseudo-terminal with a program in it, for tests that type and look."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

COMMAND = [sys.executable, "-m", "pyflash"]
CTRL_C, CTRL_D, TAB, UP = b"\x03", b"\x04", b"\t", b"\x1b[A"
PROMPT = ">>> "
_PATIENCE_SECONDS = 120.0  # nobody waits that long: it only ends tests that hang
_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


def plain(text: str) -> str:
    """Text without the sequences that move the cursor, switch modes and dim."""
    return _SEQUENCES.sub("", text)


class Terminal:
    """`with Terminal("run", ..., cwd=...) as terminal:`; the program's terminal closes at the end."""

    def __init__(self, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))

        def take_terminal() -> None:  # so that Ctrl-C and hanging up are the terminal's doing, as for a person
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "PYFLASH_STATE": str(cwd / "state"), **(env or {})},
            preexec_fn=take_terminal,
        )
        os.close(slave)
        self._unread = ""
        self._bytes = b""
        self.transcript = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def hang_up(self) -> None:
        """Closes the terminal."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def type(self, keys: bytes | str) -> None:
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            data = data[os.write(self._master, data) :]

    def _read(self, seconds: float) -> bool:
        """Whether something came."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux' way of telling that the other side has closed
            data = b""
        if not data:
            raise EOFError(self.transcript[-2000:])
        self._bytes += data
        with contextlib.suppress(UnicodeDecodeError):  # the end of a character is still to come
            text, self._bytes = self._bytes.decode(), b""
            self._unread += text
            self.transcript += text
        return True

    def until(self, *texts: str) -> str:
        """What comes up to the first of the texts, with it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            ends = [at + len(text) for text in texts if (at := self._unread.find(text)) >= 0]
            if ends:
                seen, self._unread = self._unread[: min(ends)], self._unread[min(ends) :]
                return seen
            left = deadline - time.monotonic()
            assert left > 0 and self._read(left), f"no {texts} in {self.transcript[-3000:]!r}"

    def prompt(self) -> str:
        """What comes up to the next prompt, which is waiting for keys then."""
        return self.until(PROMPT)

    def enter(self, line: str) -> str:
        """Types a line at the prompt; what comes up to the next prompt, without both of them and cursor movements."""
        self.type(line + "\r")
        return plain(self.prompt()).partition(line or "\n")[2].removesuffix(PROMPT)

    def interrupt(self, seen: Callable[[], str]) -> tuple[str, float]:
        """Ctrl-C, and seconds until seen() has come back, with what it gave.

        Python sleeps through a signal that comes just before it waits for keys, so there may have to be another.
        """
        started = time.monotonic()
        self.type(CTRL_C)
        while not self._unread and not self._read(5.0):
            assert time.monotonic() - started < _PATIENCE_SECONDS, f"Ctrl-C does nothing in {self.transcript[-3000:]!r}"
            self.type(CTRL_C)
        return seen(), time.monotonic() - started

    def wait(self) -> int:
        """The program's exit code, what it still prints read."""
        with contextlib.suppress(EOFError):
            while self.process.poll() is None:
                self._read(0.1)
        return self.process.wait(timeout=_PATIENCE_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
