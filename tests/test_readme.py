"""Every block of README.md and then docs/embed.md is run, in order, in a folder that has the examples and a checkpoint."""

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from examples.screen import picture, virtual_display

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
EMBED = ROOT / "docs" / "embed.md"
# The commands that do not end.
WINDOW = "python examples/desktop/desktop.py model.gguf\n"
SERVER = "pyflash serve model.gguf\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the blocks are for a POSIX shell")

# What stands for Ollama: it checks what a Modelfile says of its model. Ollama's own engine: tests/gguf_export.
OLLAMA = """#!/bin/sh -eu
case $1 in
create)
    [ "$3" = -f ]
    from=$(sed -n 's/^FROM //p' "$4")
    [ "$(head -c 4 "$from")" = GGUF ]
    touch "made-$2" ;;
run) [ -e "made-$2" ] && echo "an answer to: $3" ;;
*) exit 1 ;;
esac
"""


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a Markdown file."""
    found = []
    source = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", source, flags=re.MULTILINE | re.DOTALL):
        found.append(Block(source.count("\n", 0, match.start()) + 1, match[1], match[2]))
    assert source.count("```") == 2 * len(found)
    return found


def opening(found: list[Block]) -> list[Block]:
    return [block for block in found if block.text.startswith("python3 -m venv")]


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A folder with what the blocks name, and bin/ for PATH."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "DeepSeek-V4-Flash").symlink_to(tiny_checkpoint)
    (tmp_path / "bin").mkdir()
    python = shlex.quote(sys.executable)
    for name, script in (("python", f'#!/bin/sh\nexec {python} "$@"\n'), ("ollama", OLLAMA),
                         ("pyflash", f'#!/bin/sh\nexec {python} -m pyflash "$@"\n')):  # fmt: skip
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    search = (place / "bin", Path(sys.executable).parent, os.environ["PATH"])
    return {**os.environ, "PATH": os.pathsep.join(map(str, search)), "HOME": str(place / "home"),
            "PYFLASH_CACHE": str(place / "cache"), "PYFLASH_MAX_TOKENS": "64", "CMAKE_GENERATOR": "Ninja"}  # fmt: skip


def run(block: Block, place: Path) -> str:
    """What the block prints. Its commands find a line to read; a source file is only written, as others expect it."""
    if block.language == "sh":
        commands = [["bash", "-euo", "pipefail", "-c", line] for line in block.text.splitlines()]
    elif block.language == "python":
        (place / "block.py").write_text(block.text)
        commands = [[sys.executable, "block.py"]]
    else:
        (place / {"cmake": "CMakeLists.txt", "c": "program.c"}[block.language]).write_text(block.text)
        commands = []
    printed = ""
    for command in commands:
        done = subprocess.run(command, cwd=place, env=environment(place), input="Hello\n", capture_output=True,
                              encoding="utf-8", errors="replace", timeout=120)  # fmt: skip
        assert done.returncode == 0, f"line {block.line}: {command[-1]}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed


def test_blocks(place: Path) -> None:
    for tool in ("cmake", "ninja"):
        if shutil.which(tool, path=environment(place)["PATH"]) is None:
            pytest.skip(f"no {tool}")
    found = [*blocks(README), *blocks(EMBED)]
    elsewhere = [*opening(found), *(block for block in found if block.text in (WINDOW, SERVER))]
    assert len(elsewhere) == 4
    printed = {block.text: run(block, place) for block in found if block not in elsewhere}

    def of(part: str) -> str:
        return next(out for text, out in printed.items() if part in text)

    assert "178 tensors" in of("pyflash convert") and "kernels" in of("pyflash convert")
    assert (place / "model.gguf").is_file() and (place / "chat.session").is_file()
    assert len(of("import pyflash")) > 50
    assert "an answer to: Why is the sky blue?\n" in of("ollama create")
    assert list((place / "home" / ".lmstudio" / "models").glob("*/*/model.gguf"))
    assert re.search(r"^.+: 6 layers$", of("build-program/program"), flags=re.MULTILINE)
    assert "embed" not in of("build-embed/embed").splitlines()[-1]  # the build's last line; the answer comes after


def test_window_block(place: Path, tiny_model: Path) -> None:
    """desktop.py as the README calls it draws its window; tests/examples/test_desktop.py uses it."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb")
    if importlib.util.find_spec("_tkinter") is None:
        pytest.skip("this Python has no tkinter")
    assert WINDOW in [block.text for block in blocks(README)]
    (place / "model.gguf").symlink_to(tiny_model)
    with virtual_display(place, 760, 560) as display, open(place / "errors", "w") as errors:
        window = subprocess.Popen(["bash", "-c", f"exec {WINDOW}"], cwd=place, stderr=errors,
                                  env={**environment(place), "DISPLAY": display})  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while np.mean(picture(place / "Xvfb_screen0") == 255) < 0.3:
                assert window.poll() is None and time.monotonic() < deadline, (place / "errors").read_text()
                time.sleep(0.05)
        finally:
            window.terminate()
            window.wait()
    assert (place / "errors").read_text() == ""


def test_server_block(place: Path, tiny_model: Path) -> None:
    """The server as the README starts it, but at a free port, hands out its page."""
    (place / "model.gguf").symlink_to(tiny_model)
    assert SERVER in [block.text for block in blocks(README)]
    with subprocess.Popen(["bash", "-c", f"exec {SERVER}"], cwd=place, stderr=subprocess.PIPE, text=True,
                          env={**environment(place), "PYFLASH_PORT": "0"}) as server:  # fmt: skip
        assert server.stderr is not None
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", server.stderr.readline())
            assert address is not None
            asked = urllib.request.Request(address[0], headers={"Accept": "text/html"})
            with urllib.request.urlopen(asked, timeout=60) as page:
                assert b"<title>pyflash</title>" in page.read()
        finally:
            server.terminate()
            server.communicate(timeout=60)
        assert server.returncode == 0


def test_opening_commands() -> None:
    """They make environments, and one of them runs the tests: .ci/run begins with these two, as they stand."""
    found = blocks(README)
    commands = [block.text for block in opening(found)]
    assert commands == [block.text for block in found[:2]]
    assert all(command.count("\n") == 1 for command in commands)
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("no .ci/run, as in a source package")
    listed = subprocess.run([script, "--list"], capture_output=True, text=True, check=True).stdout
    assert sorted(listed.splitlines(keepends=True)) == sorted(commands)
    pytest.skip("only compared here; .ci/run runs them: " + " ; ".join(command.strip() for command in commands))


PAGES = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", prose):
        assert target.startswith("https://") or (page.parent / target).exists(), target
