"""The C builds of this folder, made once a run, whatever the number of its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import c_build, cuda_build


class Builds:
    """mode -> (gate program, glue library), built when first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory

    def get(self, mode: str) -> tuple[Path, Path]:
        c_build.compiler()
        program, library = c_build.made_once(self.factory, mode, lambda folder: c_build.build(folder, mode))
        return program, library


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory)


@pytest.fixture(scope="session")
def cuda_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The CUDA plugin's objects over the emulation."""
    cuda_build.cxx()
    return c_build.made_once(tmp_path_factory, "cuda", cuda_build.emulated_objects)
