"""The documentation as a site: it is built strictly, and every page is seen in a browser at a phone's and a desk's width."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOOSE = """() => [...document.querySelectorAll("article *, header *, nav *")]
  .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1
               && !e.closest("pre, .md-typeset__scrollwrap, [hidden]"))
  .map(e => e.outerHTML.slice(0, 80))"""
BROKEN = "() => [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"

pytestmark = [pytest.mark.page,
              pytest.mark.skipif(not importlib.util.find_spec("zensical"), reason="pip install zensical")]  # fmt: skip


def build(out: Path, root: Path = ROOT, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, root / "scripts" / "build_site.py", out, *options], capture_output=True, text=True,
                          timeout=300)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    done = build(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_at_every_width(page: Any, address: str, site: Path) -> None:
    """No error, nothing from elsewhere (the fixture), nothing cut off at the right, every picture there."""
    pages = sorted(file.parent.relative_to(site) for file in site.rglob("index.html"))
    assert len(pages) == len([*(ROOT / "docs").glob("*.md")]) + 2  # README, CONTRIBUTING, CHANGELOG, without docs/README.md
    for name in pages:
        page.goto(f"{address}/{name}/")
        page.locator("article h1").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert page.evaluate(LOOSE) == [], name
        page.wait_for_function("() => [...document.images].every(i => i.complete)")
        assert page.evaluate(BROKEN) == [], name


def test_a_word_is_found(page: Any, address: str) -> None:
    page.goto(address)
    page.locator(".md-search__button:visible, .md-header [for=__search]:visible").first.click()
    page.locator("input[type=text]:visible, input[type=search]:visible").first.fill("importance")
    page.locator("a[href*='imatrix']:visible").first.click()
    page.wait_for_url("**/imatrix/**")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the site is made of, for a test to break."""
    root = tmp_path / "copy"
    for folder in ("docs", "packaging/site", "scripts"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / file, root)
    for folder in ("csrc", "examples", "pyflash"):  # what pages link to
        (root / folder).symlink_to(ROOT / folder)
    return root


@pytest.mark.parametrize(("text", "words"), [
    ("[a page](nothing.md)", "docs/bits.md: nothing.md is not there"),
    ("[a part](run.md#nothing-of-the-kind)", "anchor does not exist"),
    ("![a picture](nothing.png)", "docs/bits.md: nothing.png is not there"),
])  # fmt: skip
def test_what_is_broken_ends_the_build(copy: Path, tmp_path: Path, text: str, words: str) -> None:
    page = copy / "docs" / "bits.md"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{text}\n", encoding="utf-8")
    done = build(tmp_path / "out", copy)
    assert done.returncode == 1 and words in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_every_page_has_a_place_in_the_menu(copy: Path, tmp_path: Path) -> None:
    (copy / "docs" / "new.md").write_text("# New\n", encoding="utf-8")
    done = build(tmp_path / "out", copy)
    assert done.returncode == 1 and "no place in its menu for new.md" in done.stderr


def test_links_to_sources(copy: Path, tmp_path: Path) -> None:
    """They are text, or lead to a repository. What stands in code is left alone."""
    page = copy / "docs" / "bits.md"
    page.write_text("# Bits\n\n[the header](../csrc/include/pyflash.h)\n\n```md\n[not one](nothing.md)\n```\n",
                    encoding="utf-8")
    out = tmp_path / "out"
    done = build(out, copy, "--repository", "https://example.org/pyflash")
    assert done.returncode == 0, done.stdout + done.stderr
    built = out / "bits" / "index.html"
    assert 'href="https://example.org/pyflash/csrc/include/pyflash.h"' in built.read_text(encoding="utf-8")
    done = build(out, copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<p>the header</p>" in built.read_text(encoding="utf-8")


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    done = build(tmp_path)
    assert done.returncode == 1 and "name another folder" in done.stderr
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"
