"""Standard input, output and error: whole texts out, all of what comes in, and nothing that steers a terminal.

O_NONBLOCK belongs to what descriptors share: a program such as node switches it on for everybody who inherits its pipes,
or later. It is not switched off here, where others need it, but waited out.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
from typing import Any

import click

from pyflash.cli.text import MAX_TEXT_BYTES, Tell, decode_text
from pyflash.native.errors import FileError
from pyflash.native.text import visible

SILENCE_SECONDS = 3.0  # of a pipe, before a line tells that it is waited for
_CHUNK_BYTES = 1 << 16


# -- the streams themselves --


class _Waiting(io.RawIOBase):
    """A descriptor that is waited for where the system says "not now", and that takes all it is given."""

    def __init__(self, descriptor: int, name: str, reads: bool) -> None:
        self.name = name
        self._descriptor = descriptor
        self._reads = reads

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return not self._reads

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                data = os.read(self._descriptor, len(buffer))
            except BlockingIOError:
                select.select([self._descriptor], [], [])
                continue
            buffer[: len(data)] = data
            return len(data)

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            try:
                done += os.write(self._descriptor, view[done:])
            except BlockingIOError:
                select.select([], [self._descriptor], [])
        return done


def prepare_streams() -> None:
    """Makes sys.stdin, sys.stdout and sys.stderr what this module promises. For a program that owns its process."""
    _open_closed_streams()
    if os.name == "posix":  # elsewhere pipes block
        for name in ("stdin", "stdout", "stderr"):
            setattr(sys, name, _waiting(getattr(sys, name), name))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _waiting(stream: Any, name: str) -> Any:
    if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
        return stream  # somebody else's
    try:
        descriptor = stream.fileno()
    except OSError:
        return stream
    raw = _Waiting(descriptor, f"<{name}>", name == "stdin")
    buffer = io.BufferedReader(raw) if name == "stdin" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering,
                            write_through=stream.write_through)  # fmt: skip


def _open_closed_streams() -> None:
    """Gives a program that was started without stdin, stdout or stderr empty ones.

    Else the next file that is opened, such as the model, would get the number of what is missing.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # for the rest of the process


def leave_output() -> None:
    """Drops what the streams cannot take, after that has been told: Python would complain once more when it flushes at
    exit, and end with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# -- out --


def on_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def dimmed(text: str) -> str:
    """Dimmed for a terminal, unless NO_COLOR asks for plain text."""
    return text if os.environ.get("NO_COLOR") else click.style(text, dim=True)


def say(line: str, dim: bool = False) -> None:
    """A line for people on stderr. That nobody can read it ends nothing. dim: dimmed on a terminal."""
    text = visible(line)
    with contextlib.suppress(OSError):
        click.echo(dimmed(text) if dim and on_terminal(sys.stderr) else text, err=True)


def show(text: str) -> None:
    """Lines for people on stdout."""
    click.echo(visible(text))


def show_for_programs(text: str) -> None:
    """Lines that people read on a terminal, and programs elsewhere: these get a file's name byte for byte."""
    if sys.stdout.isatty():
        show(text)
    else:
        click.echo(text.encode("utf-8", "surrogateescape"))


# -- in --


def read_stdin(tell: Tell) -> str:
    """All of stdin."""
    return decode_text(_read_all(None), "stdin", tell)


def piped_text(tell: Tell) -> str:
    """What is piped to a program that was also given a prompt, "" without a pipe.

    Whoever holds the other end may write late, and dropping that would answer something else than what was asked. So it
    is waited for, and where nothing comes for a while, as from a scheduler's pipe, a line tells so.
    """
    if sys.stdin is None or not _is_piped():
        return ""
    return decode_text(_read_all(tell), "stdin", tell)


def _is_piped() -> bool:
    """Whether stdin is a pipe, a file or a socket, rather than a terminal, /dev/null or closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_all(tell: Tell | None) -> bytes:
    """Everything up to the end of stdin. tell: gets a line when nothing comes for a while."""
    reader: Any = sys.stdin.buffer
    chunks: list[bytes] = []
    size = 0
    while True:
        if not _has_come(SILENCE_SECONDS if tell is not None else None) and tell is not None:
            tell("pyflash: waiting for the end of what is piped in; to answer without it, start with < /dev/null")
            tell = None
        chunk = reader.read1(_CHUNK_BYTES)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_TEXT_BYTES:
            raise FileError(f"stdin holds more than {MAX_TEXT_BYTES >> 20} MiB, which no context holds")


def _has_come(seconds: float | None) -> bool:
    """Whether reading stdin will find something, or its end, within that time. None: as long as it takes."""
    if sys.platform == "win32":
        return _has_come_to_a_pipe(seconds)
    return seconds is None or bool(select.select([sys.stdin.fileno()], [], [], seconds)[0])


def _has_come_to_a_pipe(seconds: float | None) -> bool:
    """Windows does not wake a main thread that reads on Ctrl-C: it looks into the pipe again and again instead."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt
        import time

        try:
            handle = ctypes.c_void_p(msvcrt.get_osfhandle(sys.stdin.fileno()))
        except (OSError, ValueError):
            return True
        peek, available = ctypes.WinDLL("kernel32").PeekNamedPipe, ctypes.c_ulong(0)
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            if not peek(handle, None, 0, None, ctypes.byref(available), None) or available.value:
                return True  # no pipe, its end, or bytes
            time.sleep(0.1)
        return False
    return True
