"""Runs the blocks of a page, one after the other, in a folder that has what they name."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples.screen import picture, virtual_display

from .blocks import ROOT, Block, blocks

# What does not end by itself: it is started, has to show that it works, and is stopped.
SERVER = re.compile(r"pyflash serve (?!.*--print-config)")
WINDOW = re.compile(r"python examples/desktop/desktop\.py|build-desktop/desktop\b")
# The state of the shell goes from one line to the next.
SHELL = 'set -euo pipefail\n[ ! -f "$STATE" ] || . "$STATE"\n{line}\n{{ printf "cd %q\\n" "$PWD"; export -p; }} > "$STATE"\n'

# What stands for Ollama: it checks what a Modelfile says of its model. Ollama's own engine: tests/gguf_export.
OLLAMA = """#!/bin/sh -eu
case $1 in
create)
    [ "$3" = -f ]
    from=$(sed -n 's/^FROM //p' "$4")
    [ "$(head -c 4 "$from")" = GGUF ]
    touch "made-$2" ;;
run) [ -e "made-$2" ] && echo "an answer to: ${3-$(cat)}" ;;
*) exit 1 ;;
esac
"""
# pip looks whether there are such extras, and installs nothing.
PIP = """#!/bin/sh -eu
[ "$1" = install ]
shift
for what; do
    case $what in
    *\\[*\\])
        extras=${what#*\\[}
        for extra in $(echo "${extras%]}" | tr , ' '); do grep -q "^$extra = \\[" PYPROJECT; done ;;
    esac
done
"""
# Agents of npm: they only tell that they were started.
AGENT = '#!/bin/sh\necho "an agent: $0 $*"\n'


@dataclass
class Place:
    """A folder to run in. left_out: what could not be run on this machine, and why."""

    folder: Path
    environment: dict[str, str]
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})  # of the page's Python
    printed: dict[str, str] = field(default_factory=dict)  # by the text of the block
    left_out: list[str] = field(default_factory=list)
    ending: ExitStack = field(default_factory=ExitStack)  # what has to be ended with the page

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def program(self, name: str, text: str) -> None:
        self.path(f"bin/{name}").write_text(text, encoding="utf-8")
        self.path(f"bin/{name}").chmod(0o755)

    def of(self, part: str) -> str:
        """What the block with this part has printed."""
        return next(out for text, out in self.printed.items() if part in text)

    def has(self, *tools: str) -> bool:
        missing = [tool for tool in tools if shutil.which(tool, path=self.environment["PATH"]) is None]
        self.left_out += [f"no {tool}" for tool in missing]
        return not missing


def make_place(folder: Path) -> Place:
    """With examples/, scripts/ and the like, and bin/ for PATH, in which stand-ins are for what is not on this machine."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "out"))  # some write there
    for name in ("scripts", "packaging", "tests", "csrc"):
        (folder / name).symlink_to(ROOT / name)
    search = (folder / "bin", Path(sys.executable).parent, os.environ["PATH"])
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, search)), "HOME": str(folder / "home"), "STATE": str(folder / ".state"),
                   "PYFLASH_CACHE": os.environ.get("PYFLASH_CACHE", str(folder / "cache")), "PYFLASH_STATE": str(folder / "state"),
                   "PYFLASH_MAX_TOKENS": "64", "CMAKE_GENERATOR": "Ninja"}  # fmt: skip
    place = Place(folder, environment)
    place.path("home/x").parent.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    place.program("python", f'#!/bin/sh\nexec {python} "$@"\n')
    place.program("pyflash", f'#!/bin/sh\nexec {python} -m pyflash "$@"\n')
    place.program("ollama", OLLAMA)
    place.program("pip", PIP.replace("PYPROJECT", shlex.quote(str(ROOT / "pyproject.toml"))))
    for agent in ("codex", "opencode"):
        place.program(agent, AGENT)
    return place


def run_page(page: str, place: Place) -> None:
    """All its blocks that run, in order."""
    for block in blocks(page):
        if block.runs:
            place.printed[block.text] = _run(block, place)


def _run(block: Block, place: Place) -> str:
    if block.language == "python":
        # Errors show the page's own line.
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place.folder)
            exec(compile("\n" * block.line + block.as_run, str(ROOT / block.page), "exec"), place.names)
        return ""
    if block.language in ("c", "cmake"):  # others expect it
        place.path({"cmake": "CMakeLists.txt", "c": "program.c"}[block.language]).write_text(block.as_run, encoding="utf-8")
        return ""
    return "".join(_run_line(line, block, place) for line in block.lines)


def _run_line(line: str, block: Block, place: Place) -> str:
    if line.startswith("cmake ") and not place.has("cmake", "ninja"):
        return ""
    if SERVER.match(line):
        return _serve(line, place)
    if WINDOW.match(line):
        return _show(line, place)
    done = subprocess.run(["bash", "-c", SHELL.format(line=line)], cwd=place.folder, env=place.environment, input="Hello\n",
                          capture_output=True, encoding="utf-8", errors="replace", timeout=400)  # fmt: skip
    assert done.returncode == 0, f"{block.place}: {line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def _started(line: str, place: Place, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = f"exec {line}"
    with subprocess.Popen(["bash", "-c", command], cwd=place.folder, env=environment, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.terminate()
            program.communicate(timeout=60)


def _serve(line: str, place: Place) -> str:
    """The server, at a free port, hands out its page."""
    with _started(line, place, {**place.environment, "PYFLASH_PORT": "0"}) as server:
        assert server.stderr is not None
        told = server.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", told)
        assert address is not None, told
        asked = urllib.request.Request(address[0], headers={"Accept": "text/html"})
        with urllib.request.urlopen(asked, timeout=60) as page:
            assert b"<title>pyflash</title>" in page.read()
    assert server.returncode == 0
    return told


def _show(line: str, place: Place) -> str:
    """A window draws itself; tests/examples uses it."""
    if not place.has("Xvfb"):
        return ""
    if "python" in line and importlib.util.find_spec("_tkinter") is None:
        place.left_out.append("no tkinter")
        return ""
    screen = place.path("screen/x").parent
    with virtual_display(screen, 760, 560) as display, _started(line, place, {**place.environment, "DISPLAY": display}) as window:
        deadline = time.monotonic() + 60
        while np.mean(picture(screen / "Xvfb_screen0") == 255) < 0.3:
            assert window.poll() is None and time.monotonic() < deadline, line
            time.sleep(0.05)
    return ""

