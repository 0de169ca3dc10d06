"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import installed_tree
import pytest

# Before numpy and torch are imported: tests run side by side, and threads that spin while they wait for one another take
# ten times the processor's time that the matrices of tests need.
for library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the source tree first: the installed package is meant.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# A shell starts its background jobs, and nohup what it starts, so that they and their children ignore signals which many
# tests send. Children start with the default for a signal that has a handler here; these change nothing else.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGQUIT", "SIGTERM"):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), lambda *_: None)

pytest_plugins = ["named_sets"]


def pytest_configure() -> None:
    told = None if os.environ.get(installed_tree.ALLOW) else installed_tree.difference()
    if told is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        raise pytest.UsageError(told)


# The files that take longest come first, so that no process is left alone with one of them at the end.
LONGEST = ["backend/test_gate.py", "demo/test_paths.py", "backend/test_cuda.py", "backend/test_device.py",
           "model/test_oracle.py", "model/test_precision.py", "model/test_state.py", "model/test_mtp.py",
           "oracle/test_transformers.py", "cli/test_cli.py", "import_llama/test_continuations.py",
           "import_llama/test_precision.py"]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = "/".join(item.path.parts[-2:])
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Another working directory: in the source tree `python -m pyflash` would run its Python files, not the installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared test vectors; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("PYFLASH_SHARED") or ROOT.parent / "shared")
    if not (folder / "vectors").is_dir():
        pytest.skip(f"no test vectors at {folder} (set PYFLASH_SHARED)")
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """pyflash's cache folder for the whole run, away from the user's; child processes see it too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYFLASH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The folder of the built-in demo model's checkpoint."""
    from pyflash import Error, demo

    try:
        return demo.checkpoint()
    except Error as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def demo_model(cache_dir: Path, demo_checkpoint: Path) -> Path:
    """The built-in demo model's GGUF: trained, and ends its answers."""
    from pyflash import demo

    return demo.path()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF of a tiny model with random weights, which hardly ever ends an answer. Not to be written to."""
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    folder = tmp_path_factory.mktemp("tiny-model")
    checkpoint = write_checkpoint(folder / "tiny, random weights", make_config("tiny"), seed=4)
    return convert(checkpoint, folder / "tiny.gguf", ConvertOptions()).files[0]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder in the official layout, with an MTP block and a tokenizer. Not to be written to."""
    from gguf_export.synthetic import make_config, write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", make_config("tiny"), seed=11)
