"""The errors of pyflash: one family, with a subclass for each thing that a caller can act on."""

from __future__ import annotations

from typing import Any

from pyflash.native.library import ffi, lib
from pyflash.native.text import visible_line


class Error(Exception):
    """Base of every error that pyflash raises on purpose. Its message is one line: what is wrong and what to do.

    what, way_out: the two parts, where they are known apart; a program with words of its own for the way out, as the
    command line has, can then say what is wrong without the Python API's. Else what is the message, way_out "".
    """

    def __init__(self, what: str = "", way_out: str = "") -> None:
        super().__init__(f"{what}: {way_out}" if way_out else what)
        self.what = what
        self.way_out = way_out


class ArgumentError(Error, ValueError):
    """An impossible argument, such as a token outside the vocabulary."""


class FileError(Error):
    """A file cannot be opened, read or written."""


class FormatError(Error):
    """A file is damaged, truncated or not what it claims to be."""


class UnsupportedError(Error):
    """Well-formed, but not something this build can do."""


class MemoryLimitError(Error):
    """Out of memory."""


class AnswerError(Error):
    """The finished answer breaks a rule of its JSON schema that could not be enforced while it was generated, or no text can
    go on as the schema or grammar demands."""


class CancelledError(Error):
    """The call was cancelled by cancel() of the session or the answer; the position is that of the last finished step."""


class DeviceError(Error):
    """A device is missing or failed."""


class ContextFullError(Error):
    """The session has no room for more tokens; open one with a larger context."""


class RebuildError(Error):
    """A rollback beyond the window that the cache keeps; roll back everything and evaluate again."""


class ClosedError(Error):
    """The model or session has been closed."""


class BusyError(Error):
    """The session is running another call, or was used otherwise while an answer waited to go on."""


class InternalError(Error):
    """A bug in pyflash."""


_BY_STATUS: dict[int, type[Error]] = {
    lib.PF_ERR_ARGUMENT: ArgumentError,
    lib.PF_ERR_FILE: FileError,
    lib.PF_ERR_FORMAT: FormatError,
    lib.PF_ERR_UNSUPPORTED: UnsupportedError,
    lib.PF_ERR_MEMORY: MemoryLimitError,
    lib.PF_ERR_CANCELLED: CancelledError,
    lib.PF_ERR_DEVICE: DeviceError,
    lib.PF_ERR_CONTEXT_FULL: ContextFullError,
    lib.PF_ERR_REBUILD: RebuildError,
}


def check(status: int, error: Any) -> None:
    """Raises the exception for a pf_status and its pf_error, unless the status is PF_OK."""
    if status == lib.PF_OK:
        return
    message = ffi.string(error.message).decode("utf-8", "surrogateescape") or f"error {status} without a message"
    raise _BY_STATUS.get(status, InternalError)(visible_line(message))  # it may hold names from a file
