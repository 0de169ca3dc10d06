"""Programs that use pyflash are checked against its types."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyflash
import pytest

SAMPLE = Path(__file__).with_name("typing_sample.py")


def test_package_says_that_it_is_typed() -> None:
    assert (Path(pyflash.__file__).parent / "py.typed").is_file()


def test_a_typed_program_passes_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = shutil.copy(SAMPLE, tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
