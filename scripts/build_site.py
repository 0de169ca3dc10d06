#!/usr/bin/env python
"""Builds the documentation as a site: python scripts/build_site.py OUT (pip install '.[site]' first).

Its pages are README.md, CONTRIBUTING.md, CHANGELOG.md and docs/, as they stand; links between them lead to the site's pages.
Links to what is no page, such as a header, stay as text, or lead to a repository. A broken link, anchor or picture, and a page
that the menu lacks, end the build with an error, and OUT stays as it was.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import click

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "packaging" / "site"
# docs/README.md is the list of pages, which the site's menu is
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
           "docs/README.md": "index.md"}  # fmt: skip
_MARK = re.compile(r"^<!-- .* -->\n(?=```)", re.MULTILINE)  # what tests/docs does with a block
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^()\s]+)\)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def site_name(path: str) -> str | None:
    """The site's name of a file of the repository; None for what is not on the site."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") and "/" not in path.removeprefix("docs/") else None


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces: whether each may have links, and the piece."""
    at = 0
    for fence in _FENCE.finditer(text):
        yield True, text[at : fence.start()]
        yield False, fence.group()
        at = fence.end()
    yield True, text[at:]


def for_the_site(page: str, text: str, repository: str | None) -> str:
    """The text of a page, named as in the repository, with its links as the site's."""

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        if ":" in target or target.startswith("#"):
            return found.group()
        path, hash_sign, anchor = target.partition("#")
        path = urljoin(page, path)
        if not (ROOT / path).exists():
            raise click.ClickException(f"{page}: {target} is not there")
        name = site_name(path)
        if name is not None:
            return f"{picture}[{label}]({name}{hash_sign}{anchor})"
        return label if repository is None else f"[{label}]({repository.rstrip('/')}/{path})"

    return "".join(_LINK.sub(link, piece) if may else piece for may, piece in outside_code(_MARK.sub("", text)))


def pages() -> list[str]:
    return [*(name for name in OUTSIDE if "/" not in name),
            *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "README.md")]  # fmt: skip


def in_menu(menu: list[Any] | dict[str, Any] | str) -> set[str]:
    if isinstance(menu, str):
        return {menu}
    return set().union(*(in_menu(entry) for entry in (menu.values() if isinstance(menu, dict) else menu)))


def stage(folder: Path, repository: str | None) -> None:
    """Writes what the generator reads: its settings, and the pages."""
    settings = (SETTINGS / "zensical.toml").read_text(encoding="utf-8")
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")
    target = folder / "pages"
    target.mkdir()
    names = set()
    for page in pages():
        name = site_name(page)
        assert name is not None
        names.add(name)
        text = (ROOT / page).read_text(encoding="utf-8")
        (target / name).write_text(for_the_site(page, text, repository), encoding="utf-8")
    for picture in (ROOT / "docs").iterdir():
        if picture.suffix in (".svg", ".png"):
            shutil.copy(picture, target)
    listed = in_menu(tomllib.loads(settings)["project"]["nav"])
    if missing := sorted(names - listed):
        raise click.ClickException(f"packaging/site/zensical.toml has no place in its menu for {', '.join(missing)}")
    if unknown := sorted(listed - names):
        raise click.ClickException(f"packaging/site/zensical.toml names pages that are not there: {', '.join(unknown)}")


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--repository", metavar="URL", help="Where the source files can be read: links to them lead there.")
def main(out: Path, repository: str | None) -> None:
    if importlib.util.find_spec("zensical") is None:
        raise click.ClickException("zensical builds the site and is not installed: pip install '.[site]'")
    if out.exists() and any(out.iterdir()) and not (out / "sitemap.xml").exists():
        raise click.ClickException(f"{out} holds something else than a site: name another folder")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        stage(folder, repository)
        built = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=folder, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if built.returncode:
            told = _COLOUR.sub("", built.stdout).partition("Traceback")[0]
            raise click.ClickException(f"{told}the site was not built")
        if out.exists():
            shutil.rmtree(out)
        shutil.move(folder / "site", out)
    print(f"{out}: {len(pages())} pages")


if __name__ == "__main__":
    main()
