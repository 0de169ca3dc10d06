"""Draws docs/speed.svg: the table that compare_llama.py writes into docs/performance.md.

    python scripts/make_speed_picture.py            # writes the picture
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
TARGET = DOCS / "speed.svg"
TABLE = re.compile(r"<!-- compare_llama\.py writes from here -->\n(.*?)<!-- to here -->", re.DOTALL)

WIDTH, MARGIN, LABELS, BAR, GAP = 760, 12, 130, 18, 16
# Readable on light and dark pages: the words are of a middle grey.
STYLE = """text { font: 13px system-ui, sans-serif; fill: #768390 } .name { font-weight: 600 }
.rival { fill: #9aa4b0 } .second { fill: #c4cad2 } .own { fill: #1a66c2 }"""


def read(page: str) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """The engines, and of each test its name and their tokens/s, from the text of docs/performance.md."""
    found = TABLE.search(page)
    if found is None:
        raise ValueError("docs/performance.md has no table of compare_llama.py")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines() if line.startswith("|")]
    head, body = rows[0], rows[2:]
    columns = range(head.index("test") + 1, head.index("pyflash") + 1)
    tests = [(row[head.index("test")], [float(row[column].split()[0]) for column in columns]) for row in body]
    return [head[column] for column in columns], tests


def draw(page: str) -> str:
    """The picture as SVG: bars for each test, with the largest figure of a test as wide as the picture."""
    engines, tests = read(page)
    kinds = ["rival", "second"][: len(engines) - 1] + ["own"]
    shapes, y = [], MARGIN
    for test, speeds in tests:
        shapes.append(f'<text class="name" x="{MARGIN}" y="{y + 13}">{escape(test)} tokens</text>')
        y += BAR + 2
        for engine, speed, kind in zip(engines, speeds, kinds):
            width = (WIDTH - 2 * MARGIN - LABELS - 60) * speed / max(speeds)
            shapes.append(f'<text x="{MARGIN}" y="{y + 13}">{escape(engine)}</text>')
            shapes.append(f'<rect class="{kind}" x="{MARGIN + LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 3}" rx="2"/>')
            shapes.append(f'<text x="{MARGIN + LABELS + width + 8:.1f}" y="{y + 13}">{speed:.1f}/s</text>')
            y += BAR
        y += GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">\n'
            f"<style>{STYLE}</style>\n" + "\n".join(shapes) + "\n</svg>\n")  # fmt: skip


def main() -> None:
    TARGET.write_text(draw((DOCS / "performance.md").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
