"""What becomes of locks and threads in a forked child, which has no thread but the one that forked."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Inherited(Protocol):
    """An object with locks or threads of its own."""

    def after_fork(self) -> None:
        """In the child, before anything else runs there: replaces locks that other threads may hold, and forgets
        threads."""


_watched: weakref.WeakSet[Inherited] = weakref.WeakSet()


def watch(thing: Inherited) -> None:
    """Has thing.after_fork() called in forked children, for as long as thing lives."""
    _watched.add(thing)


class Lock:
    """A lock for a with statement that is free in a forked child, whoever held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        watch(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_exc: object) -> None:
        self._lock.release()


def _in_child() -> None:
    for thing in list(_watched):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
