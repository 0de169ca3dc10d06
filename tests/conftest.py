"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared specification and test vectors; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PYFLASH_SHARED") or ROOT.parent / "shared")
    if not (folder / "vectors").is_dir():
        pytest.skip(f"no test vectors at {folder} (set PYFLASH_SHARED)")
    return folder
