from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page_browser
import pytest
from in_browser import browser as browser
from in_browser import opened
from in_browser import page as page
from serving import pace as pace
from serving import server as server


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key of signatures away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYFLASH_STATE", str(tmp_path_factory.mktemp("state")))
        yield


# -- the page in a browser --


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the page's sources with the packages that its lock file names."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("page") / "page"
    shutil.copytree(page_browser.SOURCES, folder, ignore=shutil.ignore_patterns("node_modules", "built", "__pycache__"))
    subprocess.run([npm, "ci", "--ignore-scripts", "--silent"], cwd=folder, check=True, timeout=600)
    return folder


@pytest.fixture(scope="session")
def demo_server() -> Iterator[str]:
    yield from page_browser.serving("--ctx", 4096)


@pytest.fixture(scope="session")
def endless_server(tiny_model: Path) -> Iterator[str]:
    """Random weights, slowly: its answers go on until they are stopped."""
    yield from page_browser.serving(tiny_model, "--ctx", 4000, program=page_browser.SLOW)


@pytest.fixture
def desk(browser: Any) -> Iterator[Any]:
    yield from opened(browser, "desk")


@pytest.fixture
def phone(browser: Any) -> Iterator[Any]:
    yield from opened(browser, "phone")
