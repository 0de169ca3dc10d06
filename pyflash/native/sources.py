"""Which sources a library was built from, so that Python files and a library of different states are never mixed.

The build writes record() of its sources into the package as native/build.json; cmake/emit_build.py calls this file by
its path, so it imports nothing of pyflash.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

RECORD = "build.json"  # beside this file, in a built package: record(), as JSON


def library_sources(root: Path) -> list[Path]:
    """The files of the source tree at `root` that libpyflash is built from: not the CUDA plugin's, nor the tools'."""
    found = [root / "CMakeLists.txt"]
    for folder in ("cmake", "csrc"):
        found += (path for path in (root / folder).rglob("*") if path.suffix in (".c", ".h", ".in", ".py", ".cmake"))
    apart = (root / "csrc" / "tools", root / "csrc" / "backend" / "cuda")
    return sorted(path for path in found if not any(folder in path.parents for folder in apart))


def record(root: Path) -> dict[str, str]:
    """{"version": the project's, "sources": a digest of the names and contents of library_sources()}."""
    match = re.search(r"project\(pyflash VERSION ([0-9.]+)", (root / "CMakeLists.txt").read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    for path in library_sources(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return {"version": match[1] if match else "", "sources": digest.hexdigest()}
