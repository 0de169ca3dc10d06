"""Streams, locales, homes and limits as they are where people really run it: each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("descriptors and locales as POSIX has them", allow_module_level=True)

import fcntl

from pseudo_terminal import Terminal, plain

COMMAND = [sys.executable, "-m", "pyflash"]
SHORT = ("-n", "3", "--temp", "0")


def started(*arguments: object, env: dict[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], env={**os.environ, **(env or {})}, **{**pipes, **streams})


def finished(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, (out or b"").decode("utf-8", "surrogateescape"), (err or b"").decode()


def run(*arguments: object, env: dict[str, str] | None = None, stdin: bytes = b"") -> tuple[int, str, str]:
    process = started(*arguments, env=env, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=120)
    return process.returncode, out.decode("utf-8", "surrogateescape"), err.decode()


def assert_told(done: tuple[int, str, str], *words: str) -> None:
    code, _, err = done
    assert code == 1 and err.splitlines()[-1].startswith("pyflash: error: ") and "Traceback" not in err, done
    assert all(word in err for word in words), done


def n_prompt(done: tuple[int, str, str]) -> int:
    assert done[0] == 0, done
    return int(json.loads(done[1].splitlines()[-1])["n_prompt"])


def nonblocking(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)


# -- descriptors that do not block --


def test_output_to_a_pipe_that_does_not_block() -> None:
    """All of it, though nobody reads at first, and the flag stays: it is everybody's who shares the pipe."""
    read, write = os.pipe()
    nonblocking(write)
    filler = os.write(write, bytes(1 << 20))  # as much as it takes
    process = started("run", "--help", stdout=write)
    time.sleep(1.0)
    assert process.poll() is None
    assert fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(write)
    with os.fdopen(read, "rb") as whole:
        text = whole.read()[filler:].decode()
    assert process.wait(timeout=60) == 0
    assert text == run("run", "--help")[1] and len(text) > 5000


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_input_from_what_does_not_block(tiny_model: Path, kind: str) -> None:
    """A prompt's text and a chat's lines that come in pieces, late."""
    for arguments, text in ((("-",), "one two three four\n"), ((), "one two three four")):
        if kind == "pipe":
            read, write = os.pipe()
        else:
            pair = socket.socketpair()
            read, write = (end.detach() for end in pair)
        nonblocking(read)
        process = started("run", tiny_model, *arguments, *SHORT, "--json", stdin=read)
        os.close(read)
        for piece in (b"one two ", b"three", b" four\n"):
            time.sleep(0.3)
            os.write(write, piece)
        os.close(write)
        assert n_prompt(finished(process)) == n_prompt(run("run", tiny_model, text, *SHORT, "--json"))


def test_text_that_comes_late_is_waited_for(tiny_model: Path) -> None:
    process = started("run", tiny_model, "Sum up:", *SHORT, "--json", stdin=subprocess.PIPE)
    assert process.stderr is not None and process.stdin is not None
    assert b"< /dev/null" in process.stderr.readline()
    process.stdin.write(b"one two three")
    done = finished(process)
    assert n_prompt(done) == n_prompt(run("run", tiny_model, "Sum up:\n\none two three", *SHORT, "--json"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("--version",), ("completion", "bash"), ("doctor",), ("--cmake-dir",)])
def test_output_that_finds_no_room(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        assert_told(finished(started(*arguments, stdout=full)), "No space left")


def test_a_reader_that_leaves() -> None:
    process = started("run", "--help", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 1


def test_messages_that_nobody_can_read_end_nothing(tiny_model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = started("run", tiny_model, "Hello", *SHORT, "--verbose", stderr=write)
    os.close(write)
    code, out, _ = finished(process)
    assert code == 0 and out == run("run", tiny_model, "Hello", *SHORT)[1]


# -- bytes that are no text --


def test_stdin_is_looked_at_as_files_are(tiny_model: Path, tmp_path: Path) -> None:
    for data, words in ((b"a\0b", ["zero bytes"]), ("Τίποτα".encode("iso8859-7"), ["not UTF-8", "iconv"])):
        (tmp_path / "file").write_bytes(data)
        for prompt in (["-"], ["Sum up:"], [], ["-f", tmp_path / "file"]):
            assert_told(run("run", tiny_model, *prompt, *SHORT, stdin=data), *words)
    plain_text = n_prompt(run("run", tiny_model, "-", *SHORT, "--json", stdin="zwölf".encode()))
    for encoding in ("utf-8-sig", "utf-16"):
        done = run("run", tiny_model, "-", *SHORT, "--json", stdin="zwölf".encode(encoding))
        assert n_prompt(done) == plain_text and ("UTF-16" in done[2]) == (encoding == "utf-16")
    code, _, err = run("run", tiny_model, "-", *SHORT, stdin="all of the cafés".encode("latin-1"))
    assert code == 0 and "not all UTF-8" in err
    assert_told(run("run", tiny_model, *SHORT, stdin=b'"""one\ntwo\n'), '"""', "line 1")


def test_arguments_that_are_no_text(tiny_model: Path) -> None:
    prompt = os.fsdecode(b"all of the caf\xe9s")
    code, _, err = run("run", tiny_model, prompt, "--system", prompt, "--stop", prompt, *SHORT)
    assert code == 0 and err.count("not all UTF-8") == 3, err


# -- locales --

LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "xx_YY.UTF-8"},
           {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]  # fmt: skip


@pytest.mark.parametrize("env", LOCALES)
def test_a_chat_whatever_the_locale(tmp_path: Path, tiny_model: Path, env: dict[str, str]) -> None:
    """What is typed is evaluated and kept as what it is, and can be edited; a later chat begins with it."""
    (tmp_path / "état.txt").write_text("Text.\n")
    for _ in range(2):
        with Terminal("run", tiny_model, *SHORT, cwd=tmp_path, env=env) as terminal:
            terminal.prompt()
            terminal.type("/system Zwölf Boxkämpfer éx\x7f\x7f日本\r")
            terminal.prompt()
            assert "Zwölf Boxkämpfer 日本" in terminal.enter("/system")
            assert "read" in plain(terminal.enter("/read état.txt"))
            terminal.enter("Wie heißt du?")
            terminal.type("/bye\r")
            assert terminal.wait() == 0
    kept = (tmp_path / "state" / "history").read_text(encoding="utf-8")
    assert "/system Zwölf Boxkämpfer 日本\n" in kept and "Wie heißt du?\n" in kept


def test_a_history_that_was_damaged(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history").write_bytes(b"caf\xe9\n\xed\xa0\x80\n\0zero\nplain\n" + "日本\n".encode())
    with Terminal("run", tiny_model, *SHORT, cwd=tmp_path, env={"LC_ALL": "C"}) as terminal:
        terminal.prompt()
        terminal.type("/bye\r")
        assert terminal.wait() == 0


@pytest.mark.parametrize("env", LOCALES)
def test_prompts_and_paths_whatever_the_locale(tmp_path: Path, tiny_model: Path, env: dict[str, str]) -> None:
    model = tmp_path / "modèle.gguf"
    model.symlink_to(tiny_model)
    expected = n_prompt(run("run", model, "Zwölf 日本", *SHORT, "--json"))
    assert n_prompt(run("run", model, "Zwölf 日本", *SHORT, "--json", env=env)) == expected
    code, out, _ = run("info", model, env=env)
    assert code == 0 and "modèle.gguf" in out


# -- no home --

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
NOBODY = 54_321  # whom the system does not know


HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "PYFLASH_CACHE", "PYFLASH_STATE")


def homeless(*arguments: object, **env: str) -> tuple[int, str, str]:
    """Run by a user without an entry, whom this Python's own folder need not let in: it becomes that one later."""
    script = ("import os, pwd, resource, sys, gguf_export.convert, pyflash.native.library\nfrom pyflash.cli.main import main\n"
              f"os.setgroups([])\nos.setuid({NOBODY})\nmain(sys.argv[1:])")
    kept = {name: value for name, value in os.environ.items() if name not in HOMES}
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], env=kept | env,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return finished(process)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for everybody, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


@needs_root
def test_without_a_home(temporary: Path, tiny_model: Path, demo_checkpoint: Path) -> None:
    """A model that is named needs none; the demo's goes among the temporary files, which a line tells."""
    model = temporary / "tiny.gguf"
    model.write_bytes(tiny_model.read_bytes())
    code, _, err = homeless("run", model, "Hello", *SHORT)
    assert (code, err) == (0, "")
    demo = shutil.copytree(demo_checkpoint, temporary / "demo")  # this environment may lie where others cannot look
    code, _, err = homeless("run", "Hello", *SHORT, TMPDIR=str(temporary), PYFLASH_DEMO=str(demo))
    assert code == 0 and "no home folder" in err and "PYFLASH_CACHE" in err, err
    code, out, _ = homeless("doctor", TMPDIR=str(temporary), PYFLASH_DEMO=str(demo))
    assert code == 0 and f"{temporary}/pyflash-{NOBODY}" in out and "no home folder" in out
    assert_told(homeless("info", "~nosuchuser/m.gguf"), "~nosuchuser", "check the p")


# -- what files write --


def test_what_a_file_writes_cannot_steer_a_terminal(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from gguf_export.convert import ConvertOptions, convert

    name = "evil\x1b]0;title\x07\x9b2J\u202e\nmodel"
    odd = tmp_path / os.fsdecode(b"m\x1b[31m\xe9.gguf")
    harmless = "n" * len(name.encode())  # which convert takes
    convert(tiny_checkpoint, odd, ConvertOptions(name=harmless))
    odd.write_bytes(odd.read_bytes().replace(harmless.encode(), name.encode()))
    tests = ("--prompt", 4, "--gen", 2, "--repeat", 1)
    commands: list[tuple[object, ...]] = [
        ("info", odd), ("info", odd, "--json"), ("bench", odd, *tests), ("bench", odd, *tests, "--json"),
        ("export", "lmstudio", odd, tmp_path / "store", "--model", "m"), ("info", tmp_path / "m\x1b[2J.gguf"),
        ("run", "--\x1b[2J"),
    ]
    for arguments in commands:
        with Terminal(*arguments, cwd=tmp_path, env={"TERM": "xterm"}) as terminal:
            terminal.wait()
            shown = terminal.transcript.replace("\x1b[K", "")
        assert not set(shown) & set("\x1b\x07\x9b\u202e\udce9"), (arguments, shown)
    code, out, _ = run("info", odd, "--json")
    found = json.loads(out)
    assert code == 0 and found["model"]["name"] == name and os.fsencode(found["file"]) == os.fsencode(odd)
    code, out, _ = run("export", "lmstudio", odd, tmp_path / "store", "--model", "m", "--force")
    assert code == 0 and os.path.exists(out.splitlines()[0])  # byte for byte where a program reads it


# -- what nobody foresaw --

BROKEN = """
import sys
import pyflash.cli.commands.{command} as command
from pyflash.cli.main import main

def fail(*_arguments, **_options):
    raise RuntimeError("an odd \\x1b[31m thing")

command.{function} = fail
main({arguments!r})
"""


@pytest.mark.parametrize(
    ("command", "function", "arguments"),
    [("run", "open_model", ["run", "m.gguf", "Hello"]), ("bench", "open_model", ["bench", "m.gguf"]),
     ("doctor", "diagnose", ["doctor"]), ("info", "device_arguments", ["info", "m.gguf"]),
     ("convert", "converter_errors", ["convert", "a", "b"]), ("export", "converter_errors", ["export", "hf", "a", "b"]),
     ("eval", "open_model", ["eval", "ppl", "m.gguf", "--text", "t"])],
)  # fmt: skip
def test_the_last_resort(command: str, function: str, arguments: list[str]) -> None:
    """One line and exit code 1; where it happened with --verbose, which every command has, or its variable."""
    def broken(*more: str, **env: str) -> tuple[int, str, str]:
        script = BROKEN.format(command=command, function=function, arguments=[*arguments, *more])
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120,
                              stdin=subprocess.DEVNULL, env={**os.environ, **env})
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    done = broken()
    assert_told(done, "RuntimeError", "an odd ␛[31m thing", "--verbose")
    assert done[2].count("\n") == 1
    for told in (broken("--verbose"), broken(PYFLASH_VERBOSE="1")):
        assert told[0] == 1 and "Traceback" in told[2] and "in fail" in told[2] and "\x1b" not in told[2]


def test_no_more_threads(tiny_model: Path) -> None:
    script = """
import sys, threading
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
from pyflash.cli.main import main
main(sys.argv[1:])
"""
    for arguments in (("run", tiny_model, "Hello"), ("info", tiny_model)):
        done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                              timeout=120, stdin=subprocess.DEVNULL)
        assert_told((done.returncode, done.stdout, done.stderr), "threads", "ulimit -u")


# -- Ctrl-C before anything is there --

INTERRUPTED = """
import os, runpy, signal, sys

class Interrupting:
    left = int(sys.argv[1])

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if "pyflash.cli.signals" not in sys.modules:  # what Python does before it comes to us
            return None
        cls.left -= 1
        if cls.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupting)
sys.argv = ["pyflash", "--version"]
runpy.run_module("pyflash", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("count", [1, 3, 10, 40, 120, 200])
def test_ctrl_c_while_modules_are_imported(count: int) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(count)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (130, ""), done


def test_ctrl_c_at_any_time(tiny_model: Path) -> None:
    """From the moment that our code runs, to the end."""
    for delay in (0.1, 0.2, 0.3, 0.4, 0.6, 0.8):
        process = started("run", tiny_model, "Hello", "-n", 2000)
        timer = threading.Timer(delay, process.send_signal, [signal.SIGINT])
        timer.start()
        code, _, err = finished(process)
        timer.join()
        assert code in (0, 130, -signal.SIGINT), (delay, code, err)
        assert "pyflash" not in err or "Traceback" not in err, (delay, err)  # else Python was still starting
        assert "Exception ignored" not in err, (delay, err)
