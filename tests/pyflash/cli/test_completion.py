"""Shell completion, by the shells themselves."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="for the shells of Unix")

BASH_SHIM = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pyflash_complete pyflash;' \
    ' printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a `pyflash` command in bin/, the scripts, and files to choose from in files/."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "pyflash"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyflash "$@"\n')
    command.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        script = subprocess.run([command, "completion", shell], capture_output=True, check=True, timeout=60).stdout
        (tmp_path / f"script.{shell}").write_bytes(script)
    files = tmp_path / "files"
    (files / "models").mkdir(parents=True)
    for name in ("a model.gguf", "notes.txt", "models/large.gguf"):
        (files / name).touch()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(place), "TERM": "dumb"}


def needs(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} here")
    return path


def bash(place: Path, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    done = subprocess.run(
        [needs("bash"), "--norc", "-c", BASH_SHIM, "bash", str(place / "script.bash"), "pyflash", *words],
        cwd=place / "files", env=environment(place), capture_output=True, encoding="utf-8", timeout=60,
    )
    return sorted(line for line in done.stdout.splitlines() if line)


def test_bash_commands_and_options(place: Path) -> None:
    commands = bash(place, "")
    assert {"completion", "convert", "doctor", "export", "info", "run"} <= set(commands)
    assert bash(place, "inf") == ["info"]
    assert bash(place, "export", "h") == ["hf"]
    assert "--cache-type" in bash(place, "info", "--")
    assert bash(place, "info", "--cache-type", "") == ["auto", "f16", "f32", "reference"]
    assert bash(place, "info", "--cache-type", "=", "re") == ["reference"]  # as bash splits words
    assert bash(place, "completion", "") == ["bash", "fish", "zsh"]


@pytest.mark.parametrize("words", [["info"], ["run"], ["run", "-m"], ["export", "hf"], ["export", "ollama"]],
                         ids=" ".join)
def test_bash_offers_models_and_folders(place: Path, words: list[str]) -> None:
    assert bash(place, *words, "") == ["a model.gguf", "models"]
    assert bash(place, *words, "models/") == ["models/large.gguf"]


def press_tab(place: Path, shell: list[str], setup: str, line: str) -> str:
    """What an interactive shell makes of line and a tab: it runs the line and shows the arguments."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(shell, cwd=place / "files", env=environment(place), stdin=slave, stdout=slave,
                               stderr=slave, start_new_session=True)
    os.close(slave)

    def read_until(text: bytes) -> bytes:
        seen, end = b"", time.monotonic() + 60
        while text not in seen and time.monotonic() < end:
            if select.select([master], [], [], 1)[0]:
                try:
                    seen += os.read(master, 4096)
                except OSError:
                    break
        assert text in seen, seen
        return seen

    try:
        os.write(master, f"{setup}; echo rea''dy\n".encode())
        read_until(b"ready\r")
        os.write(master, f"{line}\t".encode())
        read_until(line[-8:].encode())
        time.sleep(0.5)  # let the completion come: what is typed meanwhile would be taken literally
        os.write(master, b"; echo do''ne\n")
        return read_until(b"done\r").decode("utf-8", "replace")
    finally:
        process.kill()
        process.wait(timeout=60)
        os.close(master)


def test_bash_with_a_tab(place: Path) -> None:
    """The tab's own quoting: the shown arguments are one word with a space."""
    setup = f"PS1=; source {place / 'script.bash'}; unalias -a"
    shown = press_tab(place, [needs("bash"), "--norc", "--noprofile", "-i"], setup, "pyflash info a")
    assert "truncated" in shown or "is empty" in shown, shown
    assert "a model.gguf" in shown


def test_zsh_with_a_tab(place: Path) -> None:
    setup = f"PS1=; autoload -U compinit; compinit -u -D; source {place / 'script.zsh'}"
    shell = [needs("zsh"), "-f", "-i"]
    assert "is empty" in press_tab(place, shell, setup, "pyflash info a")
    assert "processor" in press_tab(place, shell, setup, "pyflash doc")


def fish(place: Path, line: str) -> list[str]:
    done = subprocess.run(
        [needs("fish"), "--no-config", "-c", f"source {place / 'script.fish'}; complete -C '{line}'"],
        cwd=place / "files", env=environment(place), capture_output=True, encoding="utf-8", timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return sorted(entry.split("\t")[0] for entry in done.stdout.splitlines())


def test_fish(place: Path) -> None:
    assert fish(place, "pyflash inf") == ["info"]
    assert fish(place, "pyflash info --cache-type ") == ["auto", "f16", "f32", "reference"]
    offered = fish(place, "pyflash info ")
    assert "a\\ model.gguf" in offered or "a model.gguf" in offered
    assert "models/" in offered
