"""Draws docs/chat.svg: a chat with the demo model, as it looks on a terminal.

    pip install pyte && python scripts/make_chat_picture.py [OUT.svg]

The chat is a real one: `pyflash run` runs in a pseudo-terminal, what is typed below is typed into it, and the screen that
it leaves is drawn. POSIX only.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

COLUMNS, ROWS = 104, 30
TYPED = ["Hello, who are you?", "/think", "What is 347 + 285?", "/bye"]
PROMPT = ">>> "
PATIENCE_SECONDS = 60
CELL, LINE, MARGIN = 8.4, 19, 18  # pixels, at a font size of 14
BACKGROUND, TEXT, DIM, TYPED_COLOUR = "#15181e", "#d8dee9", "#7d8797", "#8fc7ff"


def record(folder: Path) -> bytes:
    """What the terminal was sent."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYFLASH_STATE": str(folder / "state"),
                   "PYFLASH_CACHE": str(folder / "cache")}  # fmt: skip
    make_demo = "from pyflash import demo; demo.path()"  # not part of the picture: it tells where files are
    subprocess.run([sys.executable, "-c", make_demo], cwd=folder, env=environment, check=True)
    command = [sys.executable, "-m", "pyflash", "run", "--temp", "0"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment)
    os.close(slave)
    sent = b""
    for n, line in enumerate(TYPED, 1):
        sent = _until_prompt(master, sent, n)
        os.write(master, line.encode() + b"\r")
    while chunk := _read(master, 1.0):
        sent += chunk
    process.wait(timeout=PATIENCE_SECONDS)
    os.close(master)
    return sent


def _read(master: int, seconds: float) -> bytes:
    if not select.select([master], [], [], seconds)[0]:
        return b""
    try:
        return os.read(master, 1 << 16)
    except OSError:  # Linux, when the program has ended
        return b""


def _until_prompt(master: int, sent: bytes, count: int) -> bytes:
    """All that was sent, once so many prompts are among it and no more comes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        chunk = _read(master, 0.5)
        sent += chunk
        if not chunk and sent.count(PROMPT.encode()) >= count:
            return sent
    raise SystemExit(f"prompt {count} did not come within {PATIENCE_SECONDS} s, but: {sent!r}")


def lines(sent: bytes) -> list[list[tuple[str, bool]]]:
    """The screen's lines as runs of text, dim or not."""
    import pyte

    class Screen(pyte.Screen):  # type: ignore[misc]  # pyte knows no dim: here it is italics
        def select_graphic_rendition(self, *attributes: int, **options: object) -> None:
            super().select_graphic_rendition(*(3 if code == 2 else code for code in attributes), **options)

    screen = Screen(COLUMNS, 200)
    pyte.ByteStream(screen).feed(sent)
    found = []
    for y in range(screen.cursor.y + 1):
        runs: list[tuple[str, bool]] = []
        for x in range(COLUMNS):
            cell = screen.buffer[y][x]
            if runs and runs[-1][1] == cell.italics:
                runs[-1] = (runs[-1][0] + cell.data, cell.italics)
            else:
                runs.append((cell.data, cell.italics))
        found.append(runs)
    while found and not "".join(text for text, _ in found[-1]).strip():
        found.pop()
    return found


def _spans(runs: list[tuple[str, bool]]) -> Iterator[str]:
    x = 0
    for text, dim in runs:
        if text.strip():
            typed = x == 0 and text.startswith(PROMPT)
            colour = TYPED_COLOUR if typed else DIM if dim else TEXT
            yield f'<tspan x="{MARGIN + x * CELL:.1f}" fill="{colour}">{escape(text.rstrip())}</tspan>'
        x += len(text)


def svg(screen: list[list[tuple[str, bool]]]) -> str:
    bar = 30
    width, height = round(2 * MARGIN + COLUMNS * CELL), bar + MARGIN + len(screen) * LINE + MARGIN // 2
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="A chat with the demo model on a terminal">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
        *(f'<circle cx="{MARGIN + 2 + 18 * n}" cy="16" r="5.5" fill="{colour}"/>'
          for n, colour in enumerate(("#ed6a5e", "#f5bf4f", "#62c554"))),
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="14" xml:space="preserve">',
    ]  # fmt: skip
    for n, runs in enumerate(screen):
        if spans := "".join(_spans(runs)):
            out.append(f'<text y="{bar + MARGIN + n * LINE}">{spans}</text>')
    return "\n".join([*out, "</g>", "</svg>"]) + "\n"


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "docs" / "chat.svg"
    with tempfile.TemporaryDirectory() as folder:
        sent = b"$ pyflash run\r\n" + record(Path(folder))
    out.write_text(svg(lines(sent)), encoding="utf-8")


if __name__ == "__main__":
    main()
