"""Counts the instructions of the ARM kernels' inner loops in their object files: what a product costs where no processor is
at hand to time it.

    python scripts/count_instructions.py build/.../kernels_i8mm.c.o [--objdump aarch64-linux-gnu-objdump]

One line a weight type: instructions for 256 weights of a row with one token, unpacking included (one_q16_*), and with one
more token of a tile, whose weights are unpacked already (many_q16_*). An inner loop is the innermost one that multiplies
bytes: all from where its last jump goes back to, rare ways within it included. How many products it has is told by its
multiplications.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import dataclass

# Weights that one of these takes, both bytes of the activations counted.
MULTIPLY = {"sdot": 8, "smmla": 16, "smull": 4, "smull2": 4, "smlal": 4, "smlal2": 4}
JUMP = re.compile(r"^(b|b\.\w+|cbn?z|tbn?z)$")
UNIT = 256


@dataclass(frozen=True)
class Instruction:
    at: int
    name: str
    target: int | None


def functions(objdump: str, path: str) -> dict[str, list[Instruction]]:
    """Name: its instructions, of every function of an object file."""
    text = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[Instruction]] = {}
    own: list[Instruction] = []
    for line in text.splitlines():
        if head := re.match(r"^[0-9a-f]+ <([\w.]+)>:$", line):
            own = found.setdefault(head[1], [])
        elif parts := re.match(r"^\s+([0-9a-f]+):\s+(\S+)\s*(.*)$", line):
            goal = re.search(r"\b([0-9a-f]+) <", parts[3]) if JUMP.match(parts[2]) else None
            own.append(Instruction(int(parts[1], 16), parts[2], int(goal[1], 16) if goal else None))
    return found


def inner_loop(code: list[Instruction]) -> list[Instruction]:
    """The shortest run from a jump's target to the jump that has most of the multiplications that any such run has."""
    loops = []
    for last in code:
        if last.target is not None and last.target < last.at:
            body = [one for one in code if last.target <= one.at <= last.at]
            loops.append((sum(one.name in MULTIPLY for one in body), len(body), body))
    loops = [loop for loop in loops if loop[0] > 0]
    inner = [loop for loop in loops if not any(set(other[2]) < set(loop[2]) for other in loops)]
    return max(inner, key=lambda loop: loop[0])[2] if inner else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("object")
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    args = parser.parse_args()
    found = functions(args.objdump, args.object)
    print(f"{'type':10} {'one token':>10} {'one more':>10}")
    for name in sorted(name for name in found if re.fullmatch(r"one_q16_\w+", name)):
        figures = []
        for function in (name, name.replace("one", "many", 1)):
            body = inner_loop(found.get(function, []))
            weights = sum(MULTIPLY.get(one.name, 0) for one in body)
            figures.append(f"{len(body) * UNIT / weights:.0f}" if weights else "-")
        print(f"{name.removeprefix('one_q16_'):10} {figures[0]:>10} {figures[1]:>10}")


if __name__ == "__main__":
    main()
