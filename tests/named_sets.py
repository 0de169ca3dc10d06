"""Sets of tests that are left out unless asked for, by what they need or how long they take: pytest --set NAME.

A test belongs to a set by a mark of its name, a file by `pytestmark = pytest.mark.NAME`. Such a file is not even
imported, so that it may import what only its set needs. A file or test that is named on the command line runs, whatever
set it is in. What was left out is told at the end of the run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

SETS = {
    "oracle": "compared with torch and transformers: pip install '.[test,oracle]'",
    "llama": "run in real llama.cpp, 85 MB from npm",
    "device": "the CUDA plugin over an emulation of the device",
    "page": "the server's page and the documentation in a browser: pip install '.[test,page,site]', Debian's chromium, npm",
    "clients": "agents from npm and litellm on the server: pip install '.[test,clients]'",
    "cluster": "stages over Ray, on Linux: pip install '.[test,cluster]'",
    "wheels": "wheels and zips for other systems, made and run: pip install '.[test,wheels]', Debian's wine64 and qemu-user",
    "long": "emulated and foreign processors, sanitizers, the demo model from end to end",
}
ALL = "all"  # with the tests that are in no set
QUICK = "quick: in all together half a minute, for while one works: pytest -m quick"

_LEFT_OUT = pytest.StashKey[dict[str, dict[str, int]]]()  # set: {"files": n, "tests": n}


def pytest_addoption(parser: pytest.Parser) -> None:
    sets = "; ".join(f"{name}: {what}" for name, what in SETS.items())
    parser.addoption("--set", action="append", default=[], choices=[*SETS, ALL], metavar="NAME",
                     help=f"run this set of tests instead of those in none (again for more). {sets}. {ALL}: everything.")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for name, what in SETS.items():
        config.addinivalue_line("markers", f"{name}: {what}")
    config.addinivalue_line("markers", QUICK)
    config.stash[_LEFT_OUT] = {}


def _places(config: pytest.Config) -> list[Path]:
    """The files and folders that are named on the command line, or tests/."""
    return [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]


def _is_asked_for(config: pytest.Config, own: str | None, path: Path) -> bool:
    asked: list[str] = config.getoption("--set")
    if ALL in asked or (own in asked if asked else own is None):
        return True
    return path in _places(config)


def _leave_out(config: pytest.Config, name: str, what: str) -> None:
    counts = config.stash[_LEFT_OUT].setdefault(name, {"files": 0, "tests": 0})
    counts[what] += 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    found = re.search(rf"^pytestmark = .*\bpytest\.mark\.({'|'.join(SETS)})\b", text, flags=re.MULTILINE)
    if found is None or _is_asked_for(config, found[1], collection_path):
        return None
    if not {*collection_path.parents}.isdisjoint(_places(config)):  # and not only beside a file that is named
        _leave_out(config, found[1], "files")
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = [], []
    for item in items:
        own = next((name for name in SETS if item.get_closest_marker(name)), None)
        if _is_asked_for(config, own, item.path):
            kept.append(item)
        else:
            left_out.append(item)
            if own is not None:
                _leave_out(config, own, "tests")
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


# -- with -n the processes that collect are others than the one that reports --


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash[_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_LEFT_OUT].update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, counts in config.stash[_LEFT_OUT].items():
        amount = " and ".join(f"{n} {what if n > 1 else what[:-1]}" for what, n in counts.items() if n)
        terminalreporter.write_line(f"not run: set {name} ({amount}), {SETS[name]}; pytest --set {name}", yellow=True)
