"""The folders of this user where pyflash keeps files of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """For files that it can make again: $PYFLASH_CACHE or the platform's place."""
    return _folder(os.environ.get("PYFLASH_CACHE"), "Caches", "XDG_CACHE_HOME", Path(".cache"))


def state_dir() -> Path:
    """For what it cannot make again: $PYFLASH_STATE or the platform's place."""
    return _folder(
        os.environ.get("PYFLASH_STATE"), "Application Support", "XDG_STATE_HOME", Path(".local", "state")
    )


def _folder(override: str | None, in_mac_library: str, xdg_variable: str, in_home: Path) -> Path:
    if override:
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "pyflash"
    if sys.platform == "darwin":
        return Path.home() / "Library" / in_mac_library / "pyflash"
    base = os.environ.get(xdg_variable)
    return (Path(base) if base else Path.home() / in_home) / "pyflash"
