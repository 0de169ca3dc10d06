"""What comes on stdin beside a prompt."""

from __future__ import annotations

import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.1  # Windows does not wake a waiting main thread on Ctrl-C


def read_stdin() -> str:
    """All of stdin."""
    return sys.stdin.buffer.read().decode("utf-8-sig", "replace").replace("\r\n", "\n")


def piped_text(say: Callable[[str], None], patience: float = PATIENCE_SECONDS) -> str:
    """What is piped to a program that was also given a prompt, "" without a pipe.

    Schedulers and the like start programs with a pipe that nobody writes to or closes. Where nothing comes for a while
    the prompt goes without it, after a line that says so; "-" waits for ever.
    """
    if sys.stdin is None or not _is_piped():
        return ""
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    thread = threading.Thread(target=_read_into, args=(chunks,), daemon=True)
    thread.start()
    deadline = time.monotonic() + patience
    data: list[bytes] = []
    while True:
        try:
            chunk = chunks.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if data or time.monotonic() < deadline:
                continue
            say(f"pyflash: nothing came on stdin for {patience:g} s: answering without it (-f - waits for it)")
            return ""
        if not chunk:
            return b"".join(data).decode("utf-8-sig", "replace").replace("\r\n", "\n")
        data.append(chunk)


def _is_piped() -> bool:
    """Whether stdin is a pipe, a file or a socket, rather than a terminal, /dev/null or closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read_into(chunks: queue.SimpleQueue[bytes]) -> None:
    """Chunks up to the end of stdin, then an empty one. Below sys.stdin, whose lock a waiting thread would hold."""
    descriptor = sys.stdin.fileno()
    while True:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except OSError:
            chunk = b""
        chunks.put(chunk)
        if not chunk:
            return
