"""examples/agent, on a server whose model says what a script has it say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playing import Call, Says, playing, steps

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "agent" / "agent.py"
END = "It has two lines."


def test_it_looks_into_its_folder_only(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("nobody's", encoding="utf-8")
    script = steps(Says("Let me see.", [Call("list_files", {})]),
                   Says(calls=[Call("read_file", {"path": "notes.txt"}), Call("read_file", {"path": "../secret.txt"})]),
                   Says(calls=[Call("read_file", {"path": "nothing.txt"})]), Says(END))
    with playing(demo_model, script, monkeypatch) as served:
        done = subprocess.run([sys.executable, EXAMPLE, folder, "How many lines?"], capture_output=True, text=True, timeout=120,
                              env={**os.environ, "OPENAI_BASE_URL": f"{served.address}/v1"})
        assert (done.returncode, done.stdout) == (0, END + "\n"), done.stderr
        served.check(4)
        results = [each["content"] for each in served.work[-1].request.messages if each["role"] == "tool"]
        assert results[0] == '["notes.txt"]' and results[1] == "first line\nsecond line\n"
        assert "only files of the folder" in results[2] and results[3].startswith("error: FileNotFoundError")


def test_it_ends_some_day(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with playing(demo_model, steps(Says(calls=[Call("list_files", {})])), monkeypatch) as served:
        done = subprocess.run([sys.executable, EXAMPLE, tmp_path, "And?"], capture_output=True, text=True, timeout=240,
                              env={**os.environ, "OPENAI_BASE_URL": f"{served.address}/v1"})
        assert done.returncode == 1 and "no answer after 20 rounds" in done.stderr
        served.check(20)
