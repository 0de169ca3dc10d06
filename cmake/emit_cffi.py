"""Writes the cffi declarations of pyflash.h and what it includes as a pure Python module (out-of-line ABI mode).

Usage: emit_cffi.py pyflash.h OUT.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi


def cut_cdef(header: Path) -> str:
    """The declarations between the CDEF marks of a header, in the plain C that cffi parses."""
    parts = re.split(r"/\* CDEF (?:BEGIN|END) \*/", header.read_text(encoding="utf-8"))
    if len(parts) != 3:
        raise SystemExit(f"emit_cffi.py: {header.name} must hold one CDEF BEGIN mark and one CDEF END mark")
    text = re.sub(r"/\*.*?\*/", " ", parts[1], flags=re.DOTALL)
    return re.sub(r"\bPF_API\b", "", text)


def public_headers(header: Path) -> list[Path]:
    """What pyflash.h includes, in its order: a header's needs stand before it."""
    names = re.findall(r'^#include "(\w+\.h)"', header.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [header.parent / name for name in names]


def public_cdef(header: Path) -> str:
    """All that pyflash.h declares."""
    return "".join(cut_cdef(part) for part in public_headers(header))


def main() -> None:
    header, out = Path(sys.argv[1]), Path(sys.argv[2])
    ffi = cffi.FFI()
    ffi.set_source("pyflash.native._pyflash_cffi", None)
    ffi.cdef(public_cdef(header))
    ffi.emit_python_code(str(out))


if __name__ == "__main__":
    main()
