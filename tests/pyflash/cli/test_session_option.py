"""`pyflash run --session`: problems are told before an answer, and no other process's turns are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyflash
import pytest

COMMAND = [sys.executable, "-m", "pyflash", "run"]
OPTIONS = ["-n", "4", "--temp", "0", "-c", "2000"]


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input="", capture_output=True, encoding="utf-8", timeout=120, env=os.environ | env)


def refused(done: subprocess.CompletedProcess[str], words: str) -> bool:
    """One line, exit code 1, and no answer before it."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("pyflash: error: ") and done.stderr.count("\n") == 1, done.stderr
    return words in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="devices and pipes of POSIX systems")
def test_told_before_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "notes.txt").write_text("mine")
    for path, words in (
        ("/dev/null", "device, pipe or socket"), (tmp_path / "pipe", "device, pipe or socket"), (tmp_path, "a folder"),
        (tmp_path / "circle", "circle"), (tmp_path / "no" / "folder", "no such file or folder"),
        (tmp_path / "notes.txt", "no saved session"), (tmp_path / ("n" * 256), "too long"),
    ):  # fmt: skip
        assert refused(run(tiny_model, "Hello", "--session", path, *OPTIONS), words), words
    assert (tmp_path / "notes.txt").read_text() == "mine" and os.stat("/dev/null").st_rdev
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "notes.txt", "pipe"]


def test_a_second_process_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat"
    chat = subprocess.Popen([*COMMAND, str(tiny_model), "--session", str(file), "--json", *OPTIONS],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert chat.stdin is not None and chat.stdout is not None
    with chat:
        chat.stdin.write("Hello\n")
        chat.stdin.flush()
        while not json.loads(chat.stdout.readline()).get("done"):
            pass
        assert refused(run(tiny_model, "Me too", "--session", file, *OPTIONS), "another process or session keeps it")
        chat.stdin.write("Again\n")
        chat.stdin.close()
        chat.stdout.read()
    assert chat.returncode == 0 and file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]
    with pyflash.Model.open(tiny_model) as model, model.session(context=2000) as session:
        session.load(file)
        questions = [m["content"] for m in json.loads(session.note)["messages"] if m["role"] == "user"]
    assert questions == ["Hello", "Again"]


def test_other_kernels_are_told_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    with pyflash.Model.open(tiny_model) as model:
        if model.info.cpu_isa == "scalar":
            pytest.skip("one kernel set only")
        best = model.info.cpu_isa
    options = ("--session", tmp_path / "chat", *OPTIONS)
    assert run(tiny_model, "Hello", *options, PYFLASH_CPU="scalar").stderr == ""
    done = run(tiny_model, "More", *options, PYFLASH_CPU=best)
    assert done.returncode == 0 and done.stdout
    assert done.stderr.startswith("pyflash: ") and done.stderr.count("\n") == 1
    assert "scalar" in done.stderr and best in done.stderr


# -- a model file that becomes shorter --

needs_faults = pytest.mark.skipif(sys.platform == "win32", reason="mapped files keep their length there")


def cut(file: Path) -> None:
    os.truncate(file, 4096)


@needs_faults
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_file_that_shrinks_is_named(tiny_model: Path, tmp_path: Path, threads: str) -> None:
    file = tmp_path / "copy of it.gguf"
    file.write_bytes(tiny_model.read_bytes())
    command = [*COMMAND, str(file), "-t", threads, "--json", *OPTIONS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        assert chat.stdin is not None and chat.stdout is not None
        chat.stdin.write("Hello\n")
        chat.stdin.flush()
        while not json.loads(chat.stdout.readline()).get("done"):
            pass
        cut(file)
        _, error = chat.communicate("Again, and at length\n", timeout=60)
    assert chat.returncode == 1
    assert error.startswith("pyflash: error: ") and str(file) in error and "shorter" in error
    assert error.count("\n") == 1


LIBRARY = """
import faulthandler, os, signal, sys
import pyflash
for step in sys.argv[2].split(","):
    if step == "handler":
        faulthandler.enable()
    elif step == "catch":
        pyflash.catch_file_errors(prefix="mine: ")
    elif step == "uncatch":
        pyflash.catch_file_errors(-1)
session = pyflash.Model.open(sys.argv[1], threads=3).session(context=1000)
session.eval([5])
if sys.argv[3] == "shrink":
    os.truncate(sys.argv[1], 4096)
    session.eval([6, 7])
elif sys.argv[3] == "send":
    os.kill(os.getpid(), signal.SIGBUS)
elif sys.argv[3] == "elsewhere":
    import mmap
    with open(sys.argv[1], "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate(sys.argv[1], 4096)
        print(memory[1 << 16])
"""


@needs_faults
@pytest.mark.parametrize(
    ("steps", "what", "status", "words"),
    [
        ("", "shrink", -signal.SIGBUS, ""),  # never installed unasked
        ("catch", "shrink", 1, "mine: cannot read '"),
        ("catch,catch", "shrink", 1, "mine: cannot read '"),
        ("handler,catch", "shrink", 1, "mine: cannot read '"),
        ("catch,uncatch", "shrink", -signal.SIGBUS, ""),
        ("handler,catch,uncatch", "shrink", -signal.SIGBUS, "Fatal Python error"),
        ("catch", "send", -signal.SIGBUS, ""),
        ("handler,catch", "send", -signal.SIGBUS, "Fatal Python error"),
        ("catch", "elsewhere", -signal.SIGBUS, ""),  # not a mapping of ours
        ("handler,catch", "elsewhere", -signal.SIGBUS, "Fatal Python error"),
    ],
)
def test_the_library_does_so_when_asked(
    tiny_model: Path, tmp_path: Path, steps: str, what: str, status: int, words: str
) -> None:
    file = tmp_path / "copy.gguf"
    file.write_bytes(tiny_model.read_bytes())
    done = subprocess.run([sys.executable, "-c", LIBRARY, str(file), steps, what], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (words in done.stderr) if words else done.stderr == ""
    if status == 1:
        assert done.stderr.count("\n") == 1 and str(file) in done.stderr


@needs_faults
def test_a_terminal_gets_its_mode_back(tiny_model: Path, tmp_path: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    file = tmp_path / "copy.gguf"
    file.write_bytes(tiny_model.read_bytes())
    code = """
import os, sys, tty
import pyflash
pyflash.catch_file_errors()
session = pyflash.Model.open(sys.argv[1], threads=2).session(context=1000)
tty.setraw(0)
os.truncate(sys.argv[1], 4096)
session.eval([6, 7])
"""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60)
    assert done.returncode == 1 and termios.tcgetattr(theirs) == before
    time.sleep(0.1)
    assert b"\x1b[0m\x1b[Kcannot read '" in os.read(ours, 4096)
    for fd in (ours, theirs):
        os.close(fd)
