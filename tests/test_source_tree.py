"""Python run in the folder of the source tree, which has the Python files and no library: it takes the installed one, if
that is the tree's; and tests stop where the installed files are not the tree's."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import installed_tree
import pyflash
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(pyflash.__file__).resolve().parent

pytestmark = pytest.mark.skipif(PACKAGE.parent == ROOT, reason="an editable install is the tree")


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """By itself, as if no test ran it: neither as a worker of this run nor allowed what this run may be."""
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith("PYTEST_") and name != installed_tree.ALLOW}  # fmt: skip
    return subprocess.run([sys.executable, *arguments], cwd=folder, env={**inherited, **environment}, timeout=120,
                          capture_output=True, encoding="utf-8")  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, as far as the library and the packages go."""
    for name in ("pyflash", "quantize", "gguf_export", "csrc", "cmake"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path / "tree")
    return tmp_path / "tree"


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_the_tree_uses_the_installed_library(tree: Path, tiny_model: Path) -> None:
    printed = run(tree, "-c", "import pyflash; print(pyflash.__file__); print(pyflash.__version__)")
    assert printed.stdout.split() == [str(tree / "pyflash/__init__.py"), pyflash.__version__], printed.stderr
    assert run(tree, "-m", "pyflash", "--cmake-dir").stdout.strip() == str(PACKAGE / "lib/cmake/pyflash")
    assert run(tree, "-m", "pyflash", "--demo-checkpoint").stdout.strip() == str(tree / "pyflash/demo/model")
    assert str(PACKAGE) in run(tree, "-m", "pyflash", "doctor").stdout
    ran = run(tree, "-m", "pyflash", "run", str(tiny_model), "Hi", "-n", "2")
    assert (ran.returncode, ran.stderr) == (0, "")
    program = "import pyflash.native.library, gguf_export.convert, quantize; print(gguf_export.__file__)"
    assert str(tree) in run(tree, "-c", program).stdout


def test_the_folder_of_this_very_tree() -> None:
    done = run(ROOT, "-m", "pyflash", "--version")
    assert done.returncode == 0 and pyflash.__version__ in done.stdout, done.stderr


def test_python_files_may_differ_from_the_installed(tree: Path) -> None:
    """Those of the tree with a library of the tree's C: as an editable install."""
    append(tree / "pyflash/__init__.py", "\nOURS = 5\n")
    assert run(tree, "-c", "import pyflash; print(pyflash.OURS, pyflash.Model)").stdout.startswith("5 <class")


OTHER_SOURCES: dict[str, Callable[[Path], None]] = {
    "version": lambda tree: (tree / "CMakeLists.txt").write_text(
        (tree / "CMakeLists.txt").read_text().replace("pyflash VERSION ", "pyflash VERSION 9."), encoding="utf-8"),
    "header": lambda tree: append(tree / "csrc/include/pyflash.h", "/* other */\n"),
    "source": lambda tree: append(tree / "csrc/base/status.c", "/* other */\n"),
    "new source": lambda tree: append_new(tree / "csrc/base/more.h"),
    "no source": lambda tree: shutil.rmtree(tree / "csrc"),
}  # fmt: skip


def append_new(path: Path) -> None:
    path.write_text("", encoding="utf-8")


@pytest.mark.parametrize("change", OTHER_SOURCES)
def test_a_library_of_other_sources_is_refused(tree: Path, change: str) -> None:
    OTHER_SOURCES[change](tree)
    done = run(tree, "-m", "pyflash", "doctor")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"pyflash: error: the pyflash installed in {PACKAGE.parent} was built from other sources")
    assert "'pip install .'" in done.stderr and str(tree) in done.stderr
    imported = run(tree, "-c", "import pyflash; pyflash.Model")
    assert imported.returncode == 1 and "\nImportError: the pyflash installed in" in imported.stderr


def test_a_library_of_before_records_is_refused(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "older" / "pyflash")
    (tmp_path / "older/pyflash/native/build.json").unlink()
    done = run(tree, "-m", "pyflash", "doctor", PYTHONPATH=str(tmp_path / "older"))
    assert done.returncode == 1 and "was built from other sources" in done.stderr


def test_a_tree_without_anything_installed(tree: Path, tmp_path: Path) -> None:
    """Of the installed packages only those that pyflash needs."""
    (tmp_path / "needed").mkdir()
    for folder in {*map(Path, sys.path), *map(Path, site.getsitepackages())}:
        for path in folder.glob("*") if folder.name == "site-packages" else ():
            if path.name.split(".")[0].split("-")[0] not in ("pyflash", "pyflash_llm", "quantize", "gguf_export"):
                target = tmp_path / "needed" / path.name
                if not target.exists() and path.suffix != ".pth":
                    target.symlink_to(path)
    done = run(tree, "-S", "-m", "pyflash", "doctor", PYTHONPATH=str(tmp_path / "needed"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tree} is a source tree, and no pyflash is installed beside it" in done.stderr and "'pip install .'" in done.stderr


# -- the tests of a tree whose edits are not installed --


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: None, None),
        (lambda tree: append(tree / "quantize/codecs.py", "# edited\n"), "another quantize/codecs.py"),
        (lambda tree: append_new(tree / "pyflash/cli/new.py"), "another pyflash/cli/new.py"),
        (lambda tree: (tree / "pyflash/demo/__init__.py").unlink(), "uninstall"),
        (lambda tree: append(tree / "csrc/kv/cache.h", "\n"), "other C sources"),
    ],
    ids=["nothing", "edited", "added", "removed", "C"],
)  # fmt: skip
def test_edits_that_are_not_installed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], said: str | None
) -> None:
    change(tree)
    monkeypatch.setattr(installed_tree, "ROOT", tree)
    told = installed_tree.difference()
    if said is None:
        assert told is None
    else:
        assert told is not None and said in told and f"'{sys.executable} -m pip install .' in {tree}" in told


def test_tests_stop_at_once(tree: Path) -> None:
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    append(tree / "csrc/kv/cache.h", "\n")
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/oracle", "-k", "kl_divergence")
    done = run(tree, *command)
    assert done.returncode == 4 and "passed" not in done.stdout
    assert "ERROR: the installed libpyflash was built from other C sources than this tree's: install it" in done.stderr
    assert "1 passed" in run(tree, *command, **{installed_tree.ALLOW: "1"}).stdout
