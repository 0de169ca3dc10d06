"""README.md: its two opening commands are those that .ci/run begins with; and no link of the documentation leads nowhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from docs.blocks import Block, blocks

ROOT = Path(__file__).resolve().parent.parent


def opening(found: list[Block]) -> list[Block]:
    return [block for block in found if block.text.startswith("python3 -m venv")]


def test_opening_commands() -> None:
    """They make environments, and one of them runs the tests: .ci/run begins with these two, as they stand."""
    found = blocks("README.md")
    commands = [block.text for block in opening(found)]
    assert commands == [block.text for block in found[:2]]
    assert all(command.count("\n") == 1 for command in commands)
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("no .ci/run, as in a source package")
    listed = subprocess.run([script, "--list"], capture_output=True, text=True, check=True).stdout
    assert sorted(listed.splitlines(keepends=True)) == sorted(commands)
    pytest.skip("only compared here; .ci/run runs them: " + " ; ".join(command.strip() for command in commands))


def test_length() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", prose):
        assert target.startswith("https://") or (page.parent / target).exists(), target
