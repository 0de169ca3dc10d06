"""The fenced blocks of the documentation, and what is to be done with each.

A block's language says what it is: `sh`, `python`, `c` and `cmake` are run, in the order of their page; `text` is none of them:
output, a format, a usage. A comment on the line before the fence, which no reader sees, says what else there is to it:

    <!-- not run: needs an NVIDIA GPU -->                only its options are looked at
    <!-- run with: 262144=4096, big.txt=small.txt -->    replaced in it before it is run
    <!-- compiled: ... -->                               C that is a part of a program: the declarations it needs

A block with another language, or with none, and a `text` that begins like a command fail a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ("sh", "python", "c", "cmake")
LANGUAGES = (*RUN, "text")
MARKS = ("not run", "run with", "compiled")
_FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$? ?(pyflash|python3?|pip|cmake|ollama|ray|cd|export) (?!COMMAND|\[)", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`((?:pyflash|python) [^`\n]+(?:\n[^`\n]+)?)`(?!`)")


@dataclass(frozen=True)
class Block:
    page: str  # relative to the repository
    line: int
    language: str
    text: str
    mark: str | None  # one of MARKS
    said: str  # what stands behind the mark

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in RUN and self.mark in (None, "run with")

    @property
    def looks_like_a_command(self) -> bool:
        return _COMMAND.search(self.text) is not None

    @property
    def as_run(self) -> str:
        """The text, with what `run with` replaces."""
        text = self.text
        for pair in self.said.split(", ") if self.mark == "run with" else ():
            old, _, new = pair.partition("=")
            assert old and old in text, f"{self.place}: nothing to replace by {pair!r}"
            text = text.replace(old, new)
        return text

    @property
    def lines(self) -> list[str]:
        """The commands of a shell's block: those that go on behind a backslash are one; without empty ones and comments."""
        joined = re.sub(r"\\\n\s*", "", self.as_run).splitlines()
        return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def pages() -> list[str]:
    """README.md first."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    source = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(source):
        mark, _, said = (fence[1] or "").partition(": ")
        line = source.count("\n", 0, fence.start(2)) + 1
        found.append(Block(page, line, fence[2], fence[3], mark or None, said.strip()))
    assert source.count("```") == 2 * len(found), f"{page}: a fence within a list, or without an end"
    return found


def inline_commands(page: str) -> list[str]:
    """The commands in the running text and the tables of a page."""
    prose = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [re.sub(r"\s+", " ", found) for found in _INLINE.findall(prose)]
