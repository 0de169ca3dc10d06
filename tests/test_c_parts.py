"""The C sources, beside what docs/architecture.md says of them: headers in no circle, and tools apart from the library."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"


def includes(path: Path) -> set[str]:
    """Quoted ones, which are named from csrc."""
    names = re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for name in names if (CSRC / name).is_file()}


def test_headers_in_no_circle() -> None:
    needs = {path.relative_to(CSRC).as_posix(): includes(path) for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh")}
    assert len(needs) > 60
    while free := [name for name, below in needs.items() if not below & needs.keys()]:
        for name in free:
            del needs[name]
    assert needs == {}, "in circles, or above them"


def test_tools_are_no_part_of_the_library() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "tools/" not in cmake[cmake.index("set(pf_sources") : cmake.index("add_library(pyflash_objects")]
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".c", ".cu") and "tools" not in path.parts]
    programs = [path for path in sources if re.search(r"^int main\(", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert programs == []
    assert [path.name for path in sources if includes(path) & {"tools/cpu/bench.h", "tools/cuda/bench.cuh"}] == []
