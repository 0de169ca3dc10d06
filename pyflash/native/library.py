"""Loads libpyflash. `ffi` and `lib` are cffi's, declared by csrc/include/pyflash.h."""

from __future__ import annotations

import importlib.resources
import os
import sys
from pathlib import Path
from typing import Any


def installed_file(*parts: str) -> Path | None:
    """A file or folder that the build put into the package, or None. Works for editable installs too."""
    resource = importlib.resources.files("pyflash")
    for part in parts:
        resource = resource.joinpath(part)
    path = Path(str(resource))
    return path if path.exists() else None


def _library_path() -> Path:
    override = os.environ.get("PYFLASH_LIBRARY")  # for developers: another build, such as one with sanitizers
    if override:
        return Path(os.path.expanduser(override))
    if sys.platform == "win32":
        parts = ("bin", "libpyflash.dll")
    elif sys.platform == "darwin":
        parts = ("lib", "libpyflash.dylib")
    else:
        parts = ("lib", "libpyflash.so")
    path = installed_file(*parts)
    if path is None:
        raise ImportError(f"{parts[1]} is not in the pyflash package; install it again with 'pip install .'")
    return path


def _load() -> tuple[Any, Any]:
    try:
        from pyflash.native._pyflash_cffi import ffi
    except ModuleNotFoundError as error:
        raise ImportError(
            "this pyflash is a source tree that has not been built; install it with 'pip install .' and run Python in "
            "another folder, or make an editable install"
        ) from error
    path = _library_path()
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(f"cannot load {path}: {error}") from error
    try:
        version = lib.pf_abi_version()
    except (AttributeError, ffi.error):
        raise ImportError(f"{path} is no libpyflash") from None
    if version != lib.PF_ABI_VERSION:
        raise ImportError(
            f"{path} has ABI version {version}, but this pyflash needs {lib.PF_ABI_VERSION}; install pyflash again"
        )
    return ffi, lib


ffi: Any
lib: Any
ffi, lib = _load()
__version__: str = ffi.string(lib.pf_version()).decode()
