"""Draws docs/architecture.svg: the layers of docs/architecture.md.

    python scripts/make_architecture_picture.py            # writes the picture
"""

from __future__ import annotations

from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "architecture.svg"

# Bands of parts, top to bottom, each part with a few words; of one band none uses another. None: the border.
BANDS: list[list[tuple[str, str]] | None] = [
    [("pyflash/cli", "commands, the terminal, the chat there")],
    [("pyflash/serve", "protocols, HTTP, the engine that shares a model")],
    [("pyflash/cluster", "several machines"), ("pyflash/bench", "speed"), ("pyflash/eval", "quality")],
    [("pyflash/demo", "the bundled model")],
    [("pyflash/chat", "texts of chats, replies, conversations"), ("pyflash/machine", "processor, memory plan")],
    [("pyflash/engine", "model, session, generation, sampling, tokenizer, grammar, worker")],
    [("gguf_export", "checkpoint to GGUF, stores of other programs")],
    [("quantize", "block formats, what becomes what")],
    [("pyflash/native", "cffi, errors")],
    None,
    [("tools", "programs for developers")],
    [("runtime", "model, session, sampler, session files")],
    [("model", "the mathematics: attention, mHC, MoE, MTP")],
    [("step", "buffers of a step, recording for a device")],
    [("offload", "where experts live"), ("kv", "the cache"), ("text", "tokenizer, chat turns")],
    [("arch", "sizes and weights by name")],
    [("backend/cpu", "kernel sets"), ("backend/cuda", "GPUs")],
    [("backend", "the table of operations")],
    [("format", "GGUF, block types")],
    [("base", "status, memory, files, threads")],
]

WIDTH, MARGIN, GAP, HEIGHT = 760, 12, 10, 40
# Boxes have their own ground and ink, and what stands outside is of a middle grey: readable on light and dark pages.
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.name { font-weight: 600 } .words { fill: #57606a; font-size: 12px } .border { fill: #768390; font-size: 12px }
.python { fill: #dbe9fb; stroke: #7a9cc6 } .c { fill: #dff0df; stroke: #85b385 } line { stroke: #768390 }"""


def draw() -> str:
    """The picture as SVG."""
    shapes, y, kind = [], MARGIN, "python"
    for band in BANDS:
        if band is None:
            kind = "c"
            middle = y + HEIGHT / 2 - GAP / 2
            shapes.append(f'<line x1="{MARGIN}" y1="{middle}" x2="{WIDTH - MARGIN}" y2="{middle}" stroke-dasharray="4"/>')
            words = "pyflash.h and what it includes: the public headers, also for programs in C"
            shapes.append(f'<text class="border" x="{WIDTH / 2}" y="{middle - 5}" text-anchor="middle">{words}</text>')
        else:
            width = (WIDTH - 2 * MARGIN - GAP * (len(band) - 1)) / len(band)
            for n, (name, words) in enumerate(band):
                x = MARGIN + n * (width + GAP)
                shapes.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="5"/>')
                middle = x + width / 2
                shapes.append(f'<text class="name" x="{middle:g}" y="{y + 17:g}" text-anchor="middle">{name}</text>')
                shapes.append(f'<text class="words" x="{middle:g}" y="{y + 33:g}" text-anchor="middle">'
                              f"{escape(words)}</text>")
        y += HEIGHT + GAP
    height = y - GAP + MARGIN
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img" aria-label="The layers of pyflash, top to bottom">\n<style>{STYLE}</style>\n'
            + "\n".join(shapes) + "\n</svg>\n")  # fmt: skip


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8", newline="\n")
    print(f"wrote {TARGET}")
