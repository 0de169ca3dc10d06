"""The C builds of this folder."""

from __future__ import annotations

from pathlib import Path

import native_build
import pytest

from . import cuda_build


class Builds:
    """mode -> (gate program, glue library), built when first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Path, Path]] = {}

    def get(self, mode: str) -> tuple[Path, Path]:
        if mode not in self._made:
            folder = native_build.build(mode, *(["gate"] if mode == "arm64" else ["gate", "glue"]))
            self._made[mode] = folder / "gate", folder / "glue.so"
        return self._made[mode]


@pytest.fixture(scope="session")
def builds() -> Builds:
    return Builds()


@pytest.fixture(scope="session")
def cuda_objects() -> list[Path]:
    """The CUDA plugin's objects over the emulation."""
    return cuda_build.emulated()
