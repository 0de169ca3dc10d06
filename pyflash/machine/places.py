"""The folders of this user where pyflash keeps files of its own."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from pyflash.native.errors import FileError


def cache_dir() -> Path:
    """For files that it can make again: $PYFLASH_CACHE or the platform's place.

    Without a home it is a folder of this user's among the system's temporary files. FileError where that is somebody
    else's.
    """
    return _usual_cache() or _temporary_folder()


def state_dir() -> Path | None:
    """For what it cannot make again: $PYFLASH_STATE or the platform's place; None without a home."""
    return _folder(
        os.environ.get("PYFLASH_STATE"), "Application Support", "XDG_STATE_HOME", Path(".local", "state")
    )


def homeless() -> str | None:
    """A line about a cache that is in no home, and the way out; None where all is as usual."""
    if _usual_cache() is not None:
        return None
    return f"there is no home folder: the demo model is kept in {_temporary_folder()}; PYFLASH_CACHE names another place"


def _usual_cache() -> Path | None:
    return _folder(os.environ.get("PYFLASH_CACHE"), "Caches", "XDG_CACHE_HOME", Path(".cache"))


def home() -> Path | None:
    """This user's home, None where neither the environment nor the system names one."""
    path = os.path.expanduser("~")
    return Path(path) if os.path.isabs(path) and os.environ.get("HOME", path) else None


def _folder(override: str | None, in_mac_library: str, xdg_variable: str, in_home: Path) -> Path | None:
    if override:
        return Path(os.path.expanduser(override))
    if sys.platform == "win32":
        base, in_home = os.environ.get("LOCALAPPDATA"), Path("AppData", "Local")
    elif sys.platform == "darwin":
        base, in_home = None, Path("Library", in_mac_library)
    else:
        base = os.environ.get(xdg_variable)
    if base and os.path.isabs(base):
        return Path(base) / "pyflash"
    at_home = home()
    return at_home / in_home / "pyflash" if at_home else None


def _temporary_folder() -> Path:
    """Made here, since anybody can make a folder of that name there."""
    user = str(os.getuid()) if sys.platform != "win32" else "user"
    folder = Path(tempfile.gettempdir()) / f"pyflash-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise FileError(f"there is no home folder, and {folder} cannot be made: {error.strerror}; set PYFLASH_CACHE to a "
                        "folder") from error
    if not stat.S_ISDIR(found.st_mode) or (
            sys.platform != "win32" and (found.st_uid != os.getuid() or found.st_mode & 0o022)):
        raise FileError(f"there is no home folder, and others can write to {folder}: set PYFLASH_CACHE to a folder of yours")
    return folder
