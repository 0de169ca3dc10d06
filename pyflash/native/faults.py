"""Model files that can no longer be read while they are used."""

from __future__ import annotations

from pyflash.native.errors import check
from pyflash.native.library import ffi, lib


def catch_file_errors(fd: int = 2, prefix: str = "") -> None:
    """Has the process exit with status 1, and a line on fd that names the file, when a model file becomes shorter while
    it is used or its disk fails: a fault (SIGBUS) that no exception can be made of, and that otherwise ends the process
    without a word. prefix: what the line begins with. fd -1 takes this back.
    """
    error = ffi.new("pf_error *")
    check(lib.pf_catch_file_errors(fd, prefix.encode(), error), error)
