"""Writes down which sources a build is made of: see pyflash/native/sources.py.

Usage: emit_build.py SOURCE_TREE OUT.json
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path


def main() -> None:
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    record = runpy.run_path(str(root / "pyflash" / "native" / "sources.py"))["record"](root)
    out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
