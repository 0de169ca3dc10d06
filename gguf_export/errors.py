"""The one error of this package, and what to do about the system's."""

from __future__ import annotations

import errno
from collections.abc import Sequence


class ConvertError(Exception):
    """Something about the input, the options or the disk that the user can act on; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


_WAYS_OUT = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "check the path",
    errno.ELOOP: "check the path",
    errno.EISDIR: "name a file",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.EPERM: "check the permissions of the file and its folder",
    errno.EROFS: "choose another folder",
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EFBIG: "check ulimit -f, and what the file system allows",
    errno.EMFILE: "close some or raise ulimit -n",
    errno.ENOMEM: "close other programs",
    errno.EIO: "check the disk",
}


def reason(error: OSError) -> str:
    """Why the system refused, and the way out where there is a usual one."""
    why = error.strerror or str(error)
    way = _WAYS_OUT.get(error.errno or 0)
    return f"{why}: {way}" if way else why


MOST_NAMED = 8


def first_few(names: Sequence[str], separator: str = "; ") -> str:
    """The first few of many names, and how many others there are."""
    more = f"{separator}and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return separator.join(names[:MOST_NAMED]) + more


def several(what: str, problems: Sequence[str]) -> ConvertError:
    """One error that names the first few of many problems."""
    return ConvertError(f"{what}: {first_few(problems)}")
