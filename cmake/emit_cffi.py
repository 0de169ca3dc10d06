"""Writes the cffi declarations of pyflash.h as a pure Python module (out-of-line ABI mode).

Usage: emit_cffi.py pyflash.h OUT.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi


def cut_cdef(header: str) -> str:
    """The declarations between the CDEF marks, in the plain C that cffi parses."""
    parts = re.split(r"/\* CDEF (?:BEGIN|END) \*/", header)
    if len(parts) != 3:
        raise SystemExit("emit_cffi.py: the header must hold one CDEF BEGIN mark and one CDEF END mark")
    text = re.sub(r"/\*.*?\*/", " ", parts[1], flags=re.DOTALL)
    return re.sub(r"\bPF_API\b", "", text)


def main() -> None:
    header, out = Path(sys.argv[1]), Path(sys.argv[2])
    ffi = cffi.FFI()
    ffi.set_source("pyflash.native._pyflash_cffi", None)
    ffi.cdef(cut_cdef(header.read_text(encoding="utf-8")))
    ffi.emit_python_code(str(out))


if __name__ == "__main__":
    main()
