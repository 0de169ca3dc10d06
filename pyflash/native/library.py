"""Loads libpyflash. `ffi` and `lib` are cffi's, declared by the headers of csrc/include.

A source tree has the Python files without what a build makes of them. Python run in its folder finds it first, and takes
the declarations and the library of the pyflash that is installed elsewhere on sys.path, if they were built from the
tree's own C sources; of others it uses nothing.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from pyflash.native import sources

_DECLARATIONS = "pyflash.native._pyflash_cffi"
_PACKAGE = Path(__file__).resolve().parent.parent


def _installed_package() -> Path | None:
    """The folder of another pyflash on sys.path that has been built."""
    for entry in sys.path:
        package = Path(entry or ".").resolve() / "pyflash"
        if package != _PACKAGE and (package / "native" / "_pyflash_cffi.py").is_file():
            return package
    return None


def _package_of_a_source_tree() -> Path:
    """The installed package that this source tree's Python files may use. Raises ImportError where there is none."""
    tree, package = _PACKAGE.parent, _installed_package()
    if package is None:
        raise ImportError(f"{tree} is a source tree, and no pyflash is installed beside it: install it with "
                          f"'pip install .' there, with {sys.executable}")  # fmt: skip
    try:
        built: object = json.loads((package / "native" / sources.RECORD).read_text(encoding="utf-8"))
        same = built == sources.record(tree)
    except (OSError, ValueError):
        same = False  # built before records were made, or no whole tree
    if not same:
        raise ImportError(f"the pyflash installed in {package.parent} was built from other sources than those in {tree}: "
                          f"install it again with 'pip install .' there, or run Python in another folder")  # fmt: skip
    return package


def _load_declarations() -> tuple[Any, Path | None]:
    """(cffi's ffi, the package folder that it is of, where it is not this one's)."""
    if importlib.util.find_spec(_DECLARATIONS) is not None:
        return importlib.import_module(_DECLARATIONS).ffi, None
    package = _package_of_a_source_tree()
    spec = importlib.util.spec_from_file_location(_DECLARATIONS, package / "native" / "_pyflash_cffi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, package


def installed_file(*parts: str) -> Path | None:
    """A file or folder of the package or of what the build put into it, or None. Works for editable installs too."""
    resource = importlib.resources.files("pyflash")
    for part in parts:
        resource = resource.joinpath(part)
    path = Path(str(resource))
    if not path.exists() and _built_package is not None:
        path = _built_package.joinpath(*parts)
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


def _load_library() -> Any:
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
    return lib


ffi: Any
_built_package: Path | None
ffi, _built_package = _load_declarations()
lib: Any = _load_library()
__version__: str = ffi.string(lib.pf_version()).decode()
