"""Writes csrc/format/iq_grids.c, the grids of ggml's IQ formats, from the package `gguf`.

    pip install gguf && python scripts/make_iq_grids.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import quants

HEAD = """\
/* Written by scripts/make_iq_grids.py from gguf-py: the grids of ggml's IQ formats (Iwan Kawrakow; MIT licence).
 *
 * They were chosen by their authors from data, and follow no formula. An entry packs its values' codes, the first one
 * lowest: two bits each of eight values, or three bits each of four. */
#include "format/iq_grids.h"
"""
GRIDS = {"iq1": quants.IQ1_S, "iq2_xxs": quants.IQ2_XXS, "iq2_xs": quants.IQ2_XS, "iq2_s": quants.IQ2_S,
         "iq3_xxs": quants.IQ3_XXS, "iq3_s": quants.IQ3_S}  # fmt: skip
PER_LINE = 15


def packed(kind: type[quants.IQ2_S]) -> list[int]:
    kind.init_grid()
    grid = np.asarray(kind.grid).reshape(kind.grid_shape)
    bits = 16 // grid.shape[1] if grid.shape[1] == 8 else 3
    codes = {value: code for code, value in enumerate(kind.grid_map)}
    return [sum(codes[int(value)] << bits * n for n, value in enumerate(entry)) for entry in grid]


def main() -> None:
    parts = [HEAD]
    for name, kind in GRIDS.items():
        values = packed(kind)
        lines = [", ".join(f"0x{value:04x}" for value in values[n : n + PER_LINE]) for n in range(0, len(values), PER_LINE)]
        parts.append(f"const uint16_t pf_grid_{name}[{len(values)}] = {{\n    " + ",\n    ".join(lines) + ",\n};\n")
    out = Path(__file__).resolve().parent.parent / "csrc" / "format" / "iq_grids.c"
    out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
