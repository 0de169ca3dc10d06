"""Whether the pyflash that is installed, which the tests run, is the one of this tree: an edit that is not installed
would go untested without a word."""

from __future__ import annotations

import importlib.machinery
import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pyflash", "quantize", "gguf_export")
ALLOW = "PYFLASH_TEST_INSTALLED"  # set: the tests run what is installed, whatever it is
BUILT = ("lib", "bin", "include")  # folders that the build adds to pyflash/


def _files(package: Path) -> dict[str, Path]:
    """The files of a package by their names, without what is made of them."""
    found = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.is_file()}
    made = ("native/_pyflash_cffi.py", "native/build.json")
    return {name: path for name, path in found.items()
            if "__pycache__" not in name and name not in made and name.split("/")[0] not in BUILT}  # fmt: skip


def _record_of(site: Path) -> object:
    """What the build wrote down of its sources; of an editable install it stands beside other packages."""
    for folder in [site, *map(Path, sys.path)]:
        path = folder / "pyflash" / "native" / "build.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def difference() -> str | None:
    """One sentence on what is installed and is not this tree's, and how to install it; None where all is the same."""
    again = f"install it with '{sys.executable} -m pip install .' in {ROOT} (or set {ALLOW}=1 to test what is installed)"
    spec = importlib.machinery.PathFinder.find_spec("pyflash", sys.path)
    editable = spec is None and _record_of(Path("/nowhere")) is not None
    if spec is None and not editable:
        return f"no pyflash is installed for this Python: {again}"
    site = ROOT if editable else Path(str(spec and spec.origin)).parent.parent
    for package in PACKAGES if site != ROOT else ():
        ours, theirs = _files(ROOT / package), _files(site / package)
        for name in sorted({*ours, *theirs}):
            if name not in ours:
                return (f"{site / package / name} is of another pyflash than this tree's: uninstall "
                        f"('pip uninstall pyflash-llm pyflash'), then {again}")  # fmt: skip
            if name not in theirs or ours[name].read_bytes() != theirs[name].read_bytes():
                return f"the installed pyflash has another {package}/{name} than this tree: {again}"
    if _record_of(site) != runpy.run_path(str(ROOT / "pyflash/native/sources.py"))["record"](ROOT):
        return f"the installed libpyflash was built from other C sources than this tree's: {again}"
    return None
