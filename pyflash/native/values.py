"""Values on their way between Python and libpyflash: strings, paths, tokens, numbers, handles."""

from __future__ import annotations

import contextlib
import operator
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyflash.native import forks
from pyflash.native.errors import ArgumentError, ClosedError, check
from pyflash.native.interrupt import InterruptibleRunner
from pyflash.native.library import ffi, lib

StrPath = str | os.PathLike[str]
Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float32]


def string(pointer: Any) -> str:
    """A zero-terminated C string; "" for NULL."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


def c_path(path: StrPath) -> bytes:
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise ArgumentError(f"no file can have this name: {os.fspath(path)!r}") from None
    if b"\0" in encoded:
        raise ArgumentError(f"a path cannot hold a zero byte: {os.fspath(path)!r}")
    return encoded


def token_array(tokens: Tokens) -> npt.NDArray[np.int32]:
    array = np.asarray(tokens)
    if array.ndim != 1 or array.size and not np.issubdtype(array.dtype, np.integer):
        raise ArgumentError("tokens must be a sequence of integers")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise ArgumentError("token ids must not be negative or exceed the vocabulary")
    return np.ascontiguousarray(array, dtype=np.int32)


def integer(name: str, value: int, low: int | None = None, high: int | None = None) -> int:
    """value as an int within the bounds; ArgumentError, which names it, otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be an integer, not {value!r:.40}") from None
    if low is not None and number < low:
        raise ArgumentError(f"{name} must be at least {low}")
    if high is not None and number > high:
        raise ArgumentError(f"{name} must be at most {high}")
    return number


def ints(array: npt.NDArray[np.int32]) -> Any:
    return ffi.cast("int32_t *", array.ctypes.data)


def floats(array: FloatArray) -> Any:
    return ffi.cast("float *", array.ctypes.data)


def open_handle(call: Callable[[], int], out: Any, close: Callable[[Any], None], error: Any) -> None:
    """Runs an opening call, which may log, off the main thread: Ctrl-C would get lost in a callback from C."""
    runner = InterruptibleRunner()
    try:
        check(runner.run(call, cancel=lambda: None), error)
    except KeyboardInterrupt:
        if out[0]:
            close(out[0])
        raise
    finally:
        runner.close()


class ModelHandle:
    """The native model as Model and Tokenizer share it, until it is closed."""

    def __init__(self, native: Any) -> None:
        """Takes over the reference to a pf_model."""
        self._native: Any = ffi.gc(native, lib.pf_model_release)
        self._lock = threading.Lock()
        forks.watch(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Any]:
        """The pf_model, held for the length of a call even when another thread closes this meanwhile."""
        with self._lock:
            if self._native is None:
                raise ClosedError("the model is closed")
            native = lib.pf_model_retain(self._native)
        try:
            yield native
        finally:
            lib.pf_model_release(native)

    def close(self) -> None:
        with self._lock:
            native, self._native = self._native, None
        if native is not None:
            ffi.release(native)
