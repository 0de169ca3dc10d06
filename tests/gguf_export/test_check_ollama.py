"""scripts/check_ollama.py against a scripted stand-in (ollama_stand_in.py): Ollama itself is not run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "check_ollama.py"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")


def check(folder: Path, fault: str = "") -> tuple[int, dict[str, bool]]:
    """The exit code, and what works by the name of the step."""
    program = folder / "ollama"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("ollama_stand_in.py")}" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run([sys.executable, SCRIPT, "--json"], cwd=folder, capture_output=True, encoding="utf-8", timeout=120,
                          env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "STAND_IN_FAULT": fault})
    assert not done.stderr, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {row["step"]: row["works"] for row in rows}


def test_all_steps(tmp_path: Path, demo_model: Path) -> None:
    code, works = check(tmp_path)
    assert code == 0 and len(works) == 14 and all(works.values()), works


@pytest.mark.parametrize(("fault", "step"), [
    ("/api/show", "show: tools and thinking"), ("thinking", "levels of thinking"), ("tools", "tool call and its result"),
    ("schema", "JSON schema after thinking"), ("count", "the prompt's tokens are pyflash's"),
    ("/v1/messages", "Anthropic's messages"), ("long", "a prompt that is too long is refused"),
])  # fmt: skip
def test_a_fault_is_told(tmp_path: Path, demo_model: Path, fault: str, step: str) -> None:
    code, works = check(tmp_path, fault)
    assert code == 1 and not works[step] and works["create"]


def test_without_ollama(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--ollama", str(tmp_path / "none")], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 2 and "install Ollama" in done.stderr and done.stderr.count("\n") == 1
