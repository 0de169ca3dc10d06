"""The C builds of this folder, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import c_build, cuda_build


class Builds:
    """mode -> (gate program, glue library), built when first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.done: dict[str, tuple[Path, Path]] = {}

    def get(self, mode: str) -> tuple[Path, Path]:
        if mode not in self.done:
            self.done[mode] = c_build.build(self.factory.mktemp(mode), mode)
        return self.done[mode]


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory)


@pytest.fixture(scope="session")
def cuda_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The CUDA plugin's objects over the emulation."""
    return cuda_build.emulated_objects(tmp_path_factory.mktemp("cuda"))
