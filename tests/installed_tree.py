"""Whether the pyflash that is installed, which the tests run, is the one of this tree: an edit that is not installed
would go untested without a word."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pyflash", "quantize", "gguf_export")
ALLOW = "PYFLASH_TEST_INSTALLED"  # set: the tests run what is installed, whatever it is
BUILT = ("lib", "bin", "include")  # folders that the build adds to pyflash/
PAGE, PAGE_BUILT = "serve/page/", "serve/page/built/"  # what makes the page stays in the tree


def _files(package: Path) -> dict[str, Path]:
    """The files of a package by their names, without what is made of them."""
    found = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.is_file()}
    made = ("native/_pyflash_cffi.py", "native/build.json")
    found = {name: path for name, path in found.items()
             if not name.startswith(PAGE) or name.startswith(PAGE_BUILT) or name == f"{PAGE}__init__.py"}  # fmt: skip
    return {name: path for name, path in found.items()
            if "__pycache__" not in name and name not in made and name.split("/")[0] not in BUILT}  # fmt: skip


def _found(name: str) -> Path | None:
    """A file on sys.path."""
    return next((path for path in (Path(entry, name) for entry in sys.path) if path.is_file()), None)


def difference() -> str | None:
    """One sentence on what is installed and is not this tree's, and how to install it; None where all is the same."""
    again = f"install it with '{sys.executable} -m pip install .' in {ROOT} (or set {ALLOW}=1 to test what is installed)"
    package, built = _found("pyflash/__init__.py"), _found("pyflash/native/build.json")
    if package is None and built is None:
        return f"no pyflash is installed for this Python: {again}"
    if package is not None:  # an editable install has no Python files of its own
        site = package.parent.parent
        for name in PACKAGES:
            told = _other_file(ROOT / name, site / name)
            if told is not None:
                return f"{told}: {again}"
    record = json.loads(built.read_text(encoding="utf-8")) if built is not None else None
    if record != runpy.run_path(str(ROOT / "pyflash/native/sources.py"))["record"](ROOT):
        return f"the installed libpyflash was built from other C sources than this tree's: {again}"
    return None


def _other_file(ours: Path, installed: Path) -> str | None:
    expected, found = _files(ours), _files(installed)
    for name in sorted({*expected, *found}):
        if name not in expected:
            return (f"{installed / name} is not in this tree; uninstall it ('pip uninstall pyflash-llm', and 'pyflash', an "
                    f"earlier name)")  # fmt: skip
        if name not in found or expected[name].read_bytes() != found[name].read_bytes():
            return f"the installed pyflash has another {ours.name}/{name} than this tree"
    return None
