"""Converted files that several tests export, and the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ran import Ran

from gguf_export.convert import ConvertOptions, convert


@pytest.fixture(scope="session")
def converted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Converts the tiny checkpoint, once for each set of options, to a folder of its own. Not to be written to."""
    done: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp("converted")
            done[key] = convert(tiny_checkpoint, folder / "tiny.gguf", ConvertOptions(**options)).files[0]
        return done[key]

    return make


@pytest.fixture(scope="session")
def run(cache_dir: Path) -> Callable[..., Ran]:
    """pyflash with the given arguments, in a folder."""

    def call(*arguments: str | Path, cwd: Path | None = None) -> Ran:
        command = [sys.executable, "-m", "pyflash", *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=120)
        ran = Ran(done.returncode, done.stdout, done.stderr)
        if ran.code == 1:
            assert ran.stderr.startswith("pyflash: error: ") and ran.stderr.count("\n") == 1, ran.stderr
        return ran

    return call
